"""Batches of an epoch, and the portions of a batch that fit in memory together."""

from __future__ import annotations

import numpy as np

LARGEST = 2**24  # numbers in one activation of a portion: 64 MiB in float32


def batches(count: int, batch: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Indices of an epoch's batches, shuffled; sorted within each batch."""
    order = rng.permutation(count)
    return [np.sort(order[i : i + batch]) for i in range(0, count, batch)]


def portions(index: np.ndarray, numbers: int) -> list[np.ndarray]:
    """A batch in pieces whose gradients are summed, so that memory does not grow with the map.

    Networks without batch statistics give the same step, up to rounding, in any number of pieces.

    Args:
        index: The batch.
        numbers: How many numbers the largest activation of one image has.
    """
    each = max(1, LARGEST // max(1, numbers))
    return [index[i : i + each] for i in range(0, len(index), each)]
