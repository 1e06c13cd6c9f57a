"""Arithmetic modulo the prime 2^31 - 1, which has nothing in common with 2^32.

Sums are made in double precision, as vector units multiply it quickly: a sum of products stays
below 2^53 and so is exact, whatever its order, and only sums are reduced.
"""

from __future__ import annotations

import os

import torch

PRIME = (1 << 31) - 1
_DIGIT = 11  # bits: three make up a residue
_ROW = 1 << 10
_CHUNK = 1 << 17  # values at a time: they stay in a core's cache


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
        values: (rows, n), int32, of magnitude up to 2^12.

    Returns:
        (rows,), int64 in [0, PRIME).
    """
    total = torch.zeros(values.shape[0], dtype=torch.int64)
    whole = values.shape[1] // _ROW * _ROW
    for start, stop in (
        *((s, min(s + _CHUNK, whole)) for s in range(0, whole, _CHUNK)),
        (whole, None),
    ):
        length = _ROW if stop is not None else max(1, values.shape[1] - whole)
        # 2^31 * 2^12 * 2^10 = 2^53.
        left = secret[start:stop].to(torch.float64).reshape(-1, length)
        right = values[:, start:stop].to(torch.float64).reshape(values.shape[0], -1, length)
        total += right.mul_(left).sum(2).to(torch.int64).sum(1)
        total = reduced(total)
    return total


def combined(secret: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The sums over the middle dimension of `secret` times `values`, modulo the prime.

    Args:
        secret: (several, n), int32 in [0, PRIME).
        values: (rows, n, columns), int32, of magnitude up to 2^30.

    Returns:
        (rows, several, columns), int64 in [0, PRIME).
    """
    total = torch.zeros(values.shape[0], len(secret), values.shape[2], dtype=torch.int64)
    digits = [(secret >> (_DIGIT * i)) & ((1 << _DIGIT) - 1) for i in (0, 1, 2)]
    stacked = torch.cat(digits).to(torch.float64)
    step = max(1, _CHUNK // values.shape[1])
    for start in range(0, values.shape[1], 1 << 12):
        left = stacked[:, start : start + (1 << 12)]
        # Image by image: a product of a matrix and a batch is several times slower.
        for row, image in zip(total, values[:, start : start + (1 << 12)], strict=True):
            for column in range(0, values.shape[2], step):
                # 2^11 * 2^30 * 2^12 = 2^53.
                found = left @ image[:, column : column + step].to(torch.float64)
                low, middle, high = _folded(found.to(torch.int64)).unflatten(0, (3, -1)).unbind(0)
                part = row[:, column : column + step]
                part += _folded(low + (middle << _DIGIT) + (high << (2 * _DIGIT)))
    return reduced(total)


def _folded(values: torch.Tensor) -> torch.Tensor:
    """`values` (int64) brought below 2^34 modulo the prime: 2^31 is 1 there, so high bits add."""
    return (values & PRIME) + (values >> 31)
