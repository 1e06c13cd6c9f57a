"""Resizing with antialiasing in plain numpy: the very values that PyTorch's operator gives.

The enclave resizes without PyTorch what attacks saw resized with it. Weights, their order and every
rounding are those of ``upsample_bilinear2d`` and ``upsample_bicubic2d`` with ``antialias`` on a
processor with AVX2: columns first, then rows, single precision; taps after the first four by four
as a product and a sum, what is left with one rounding for both. A test compares bits. Only the rows
and columns that are asked for are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_LANES = 4
# Numbers that are worked on at once: they stay in a processor's cache.
_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Taps:
    """Which inputs make each output: the first, how many, and their weights, (outputs, most)."""

    first: np.ndarray
    count: np.ndarray
    weights: np.ndarray


def taps(length: int, target: int, kept: slice, mode: str) -> Taps:
    """How the `kept` ones of `target` outputs are made of `length` inputs.

    Args:
        length, target: Before and after.
        kept: Of the outputs.
        mode: ``"bilinear"`` or ``"bicubic"``.
    """
    single, double = np.float32, np.float64
    reach = 1 if mode == "bilinear" else 2
    scale = single(length) / single(target)
    support = single(reach) * scale if scale >= 1 else single(reach)
    inverse = single(1) / scale if scale >= 1 else single(1)
    centre = (double(scale) * (np.arange(kept.start, kept.stop) + 0.5)).astype(single)
    first = np.maximum(((centre - support).astype(double) + 0.5).astype(np.int64), 0)
    last = np.minimum(((centre + support).astype(double) + 0.5).astype(np.int64), length)
    count = np.clip(last - first, 1, math.ceil(support) * 2 + 1)
    steps = np.arange(count.max())
    away = (steps + first[:, None]).astype(single) - centre[:, None]
    away = np.abs(((away.astype(double) + 0.5) * double(inverse)).astype(single))
    weights = _triangle(away) if mode == "bilinear" else _cubic(away)
    weights = np.where(steps < count[:, None], weights, single(0))
    total = np.zeros(len(first), single)
    for column in weights.T:
        total += column
    return Taps(first, count, weights / total[:, None])


def _triangle(away: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(away < 1, 1 - away, np.float32(0)))


def _cubic(away: np.ndarray) -> np.ndarray:
    near: np.ndarray = _fused(_fused(1.5, away, -2.5) * away, away, 1.0)
    far = _fused(_fused(_fused(-0.5, away, 2.5), away, -4.0), away, 2.0)
    return np.asarray(np.where(away < 1, near, np.where(away < 2, far, np.float32(0))))


def _fused(a: float | np.ndarray, b: np.ndarray, c: float | np.ndarray) -> np.ndarray:
    """a * b + c, rounded once: a product of two singles is exact in double precision."""
    found: np.ndarray = (np.multiply(a, b, dtype=np.float64) + c).astype(np.float32)
    return found


def resized(
    channel: np.ndarray, target: tuple[int, int], rows: slice, columns: slice, mode: str
) -> np.ndarray:
    """The `rows` and `columns` of a channel once it is scaled to `target`.

    Args:
        channel: uint8, (H, W).
        target: Height and width.
        rows, columns: Which of these are wanted.
        mode: ``"bilinear"`` or ``"bicubic"``.

    Returns:
        float32, (rows, columns).
    """
    across = taps(channel.shape[1], target[1], columns, mode)
    down = taps(channel.shape[0], target[0], rows, mode)
    top, bottom = int(down.first[0]), int((down.first + down.count).max())
    left, right = int(across.first[0]), int((across.first + across.count).max())
    across = Taps(across.first - left, across.count, across.weights)
    middle = np.empty((bottom - top, len(across.first)), np.float32)
    for part in _portions(bottom - top, right - left + len(across.first)):
        source = channel[top + part.start : top + part.stop, left:right]
        middle[part] = _summed(np.ascontiguousarray(source.T, np.float32), across).T
    return _summed(middle, Taps(down.first - top, down.count, down.weights))


def _portions(length: int, each: int) -> Iterator[slice]:
    step = max(1, _AT_ONCE // each)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _summed(source: np.ndarray, how: Taps) -> np.ndarray:
    """Weighted sums of the rows of `source`, (inputs, n); returns (outputs, n)."""
    # Of the taps after the first, these are multiplied and added with two roundings.
    apart = (how.count - 1) // _LANES * _LANES
    taken = np.take(source, how.first, axis=0)
    total: np.ndarray = taken * how.weights[:, :1]
    for step in range(1, how.weights.shape[1]):
        weights = how.weights[:, step : step + 1]
        np.take(source, how.first + step, axis=0, out=taken, mode="clip")
        twice = step <= apart
        if twice.all():
            taken *= weights
            total += taken
        elif not twice.any():
            total = _fused(taken, weights, total)
        else:
            total = np.where(twice[:, None], total + taken * weights, _fused(taken, weights, total))
    return total
