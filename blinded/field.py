"""Arithmetic modulo the prime 2^31 - 1, which has nothing in common with 2^32.

Sums are made in double precision, as vector units multiply it quickly: a sum of products stays
below 2^53 and so is exact, whatever its order, and only sums are reduced.
"""

from __future__ import annotations

import os

import torch

PRIME = (1 << 31) - 1
_SUMMED = 1 << 12  # channels summed at a time
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


def dots(secrets: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The sums over the last dimension of each of `secrets` times `values`, modulo the prime.

    Args:
        secrets: (several, n), int32 in [0, PRIME).
        values: (rows, n), int32, of magnitude up to 2^12.

    Returns:
        (several, rows), int64 in [0, PRIME).
    """
    total = torch.zeros(len(secrets), len(values), dtype=torch.int64)
    whole = values.shape[1] // _ROW * _ROW
    starts = [(s, min(s + _CHUNK, whole), _ROW) for s in range(0, whole, _CHUNK)]
    if whole < values.shape[1]:
        starts.append((whole, values.shape[1], values.shape[1] - whole))
    for start, stop, length in starts:
        right = values[:, start:stop].to(torch.float64).reshape(len(values), -1, length)
        for row, secret in zip(total, secrets, strict=True):
            # 2^31 * 2^12 * 2^10 = 2^53.
            left = secret[start:stop].to(torch.float64).reshape(-1, length)
            row += (left * right).sum(2).to(torch.int64).sum(1)
        total = reduced(total)
    return total


def combined(secrets: torch.Tensor, values: torch.Tensor, limit: int) -> torch.Tensor:
    """The sums over the middle dimension of each of `secrets` times `values`, modulo the prime.

    Args:
        secrets: (several, n), int32 in [0, PRIME).
        values: (rows, n, columns), int32.
        limit: The largest magnitude of a value, below 2^30.

    Returns:
        (rows, several, columns), int64 in [0, PRIME).
    """
    several, most = len(secrets), min(values.shape[1], _SUMMED)
    # 2^digit * limit * most stays below 2^53.
    digit = min(16, 53 - limit.bit_length() - (most - 1).bit_length())
    count = -(-31 // digit)
    digits = [(secrets >> (digit * i)) & ((1 << digit) - 1) for i in range(count)]
    stacked = torch.cat(digits).to(torch.float64)
    total = torch.zeros(len(values), several, values.shape[2], dtype=torch.int64)
    step = max(1, _CHUNK // most)
    for start in range(0, values.shape[1], _SUMMED):
        left = stacked[:, start : start + _SUMMED].contiguous()
        # Image by image: a product of a matrix and a batch is several times slower.
        for row, image in zip(total, values[:, start : start + _SUMMED], strict=True):
            for column in range(0, values.shape[2], step):
                right = image[:, column : column + step].to(torch.float64)
                found = _folded((left @ right).to(torch.int64)).unflatten(0, (count, several))
                part = row[:, column : column + step]
                for i in range(count):
                    part += _folded(found[i] << (digit * i))
    return reduced(total)


def _folded(values: torch.Tensor) -> torch.Tensor:
    """`values` (int64) made small modulo the prime: 2^31 is 1 there, so high bits add to low ones.

    What is below 2^53 comes below 2^32, and that times 2^30 below 2^33.
    """
    return (values & PRIME) + (values >> 31)
