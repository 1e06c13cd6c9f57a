"""Integers modulo 2^32, as 32-bit tensors whose bits are the residue.

A residue is stored as the signed integer with the same bits: 2^32 - 1 is -1. So what is read as
signed after unmasking needs no conversion, and a tensor crosses with 4 bytes a value.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

BITS = 32
HALF = 1 << (BITS - 1)
SIZE = 1 << BITS


def wrap(values: torch.Tensor) -> torch.Tensor:
    """`values` (int64) modulo 2^32, as int32."""
    return (((values + HALF) & (SIZE - 1)) - HALF).to(torch.int32)


def add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(a + b) modulo 2^32 of two int32 tensors."""
    return _both(torch.add, a, b)


def subtract(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(a - b) modulo 2^32 of two int32 tensors."""
    return _both(torch.sub, a, b)


def _both(call: Callable[..., torch.Tensor], a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    # 32-bit addition of tensors wraps (a test holds it to that). With another dtype torch would
    # promote silently, and nothing would wrap.
    if a.dtype != torch.int32 or b.dtype != torch.int32 or a.shape != b.shape:
        raise ValueError(
            f"`a` and `b` got {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
        )
    return call(a, b)


def uniform(shape: tuple[int, ...]) -> torch.Tensor:
    """Uniform residues of `shape` (int32) that nobody can foretell.

    The keystream of AES-256 in counter mode under a key that the operating system draws for this
    call alone and that is forgotten with it: as unforeseeable as the system's generator, at the
    speed of AES (inside Gramine the system's generator is a hundred times slower).
    """
    count = 1
    for n in shape:
        count *= n
    stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    data = bytearray(stream.update(bytes(4 * count)) + stream.finalize())
    if not data:
        return torch.empty(shape, dtype=torch.int32)
    return torch.frombuffer(data, dtype=torch.int32).reshape(shape)
