"""Robust summaries of repeated timings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def median_and_noise(samples: Sequence[float]) -> tuple[float, float]:
    """Median and its standard error: 1.2533 * sigma / sqrt(n), sigma = 1.4826 * MAD.

    >>> median_and_noise([1.0, 1.0, 1.0])
    (1.0, 0.0)
    """
    values = np.asarray(samples, float)
    median = float(np.median(values))
    sigma = 1.4826 * float(np.median(np.abs(values - median)))
    return median, 1.2533 * sigma / len(values) ** 0.5
