"""Arithmetic modulo the prime 2^31 - 1, which has nothing in common with 2^32."""

from __future__ import annotations

import os

import torch

PRIME = (1 << 31) - 1
_CHUNK = 1 << 15  # of two int64 operands: stays in a core's cache


def uniform(count: int) -> torch.Tensor:
    """`count` secret residues, int32, uniform in [0, PRIME), from the system's CSPRNG."""
    found = torch.empty(0, dtype=torch.int32)
    while len(found) < count:
        data = bytearray(os.urandom(4 * (count - len(found)) + 64))
        drawn = torch.frombuffer(data, dtype=torch.int32) & PRIME
        found = torch.cat([found, drawn[drawn != PRIME]])
    return found[:count].contiguous()


def reduced(values: torch.Tensor) -> torch.Tensor:
    """`values` (int64) modulo the prime, in [0, PRIME)."""
    return torch.remainder(values, PRIME)


def dot(secret: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The sums over the last dimension of `secret` times `values`, modulo the prime.

    Args:
        secret: (n,), int32 in [0, PRIME).
        values: (rows, n), int32, of magnitude below 2^31.

    Returns:
        (rows,), int64 in [0, PRIME).
    """
    total = torch.zeros(values.shape[0], dtype=torch.int64)
    for start in range(0, values.shape[1], _CHUNK):
        part = secret[start : start + _CHUNK].to(torch.int64) * values[:, start : start + _CHUNK]
        # 2^31 is 1 here, so high and low bits add; each is below 2^31, so the sums fit.
        total += (part & PRIME).sum(1) + (part >> 31).sum(1)
        total = reduced(total)
    return total
