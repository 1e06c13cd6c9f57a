"""Exact intervals: of a share (Clopper and Pearson, 1934), and Student's t, without tables."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..errors import UsageError

LEVEL = 0.95  # of every interval: 2.5 % lie outside at each end
_STEPS = 100  # halvings of a bracket: to the last bit of a double
_TERMS = 20_000


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), for x in [0, 1] and a, b > 0.

    By its continued fraction (Lentz's method), on whichever side of the mean that is quick.
    """
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    if x < (a + 1) / (a + b + 2):
        return math.exp(log_front) * _fraction(x, a, b) / a
    return 1 - math.exp(log_front) * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, _TERMS):
        before = value
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 + term * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + term / c
            c = c if abs(c) > tiny else tiny
            value *= c * d
        if abs(value - before) < 1e-15 * abs(value):
            break
    return value


def clopper_pearson(hits: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """Exact interval of the probability behind `hits` of `trials`; both ends in [0, 1].

    Each end is missed with a probability of at most (1 - `level`) / 2, whatever the truth is.

    Raises:
        UsageError: No trials, or hits that are not among them.
    """
    if trials < 1 or not 0 <= hits <= trials:
        raise UsageError(f"`hits` got {hits} of {trials} trials; use 0 to as many as there are")
    tail = (1 - level) / 2
    low = 0.0
    if hits:
        low, _ = _bracket(lambda p: beta_cdf(p, hits, trials - hits + 1) < tail, 0.0, 1.0)
    high = 1.0
    if hits < trials:
        _, high = _bracket(lambda p: beta_cdf(p, hits + 1, trials - hits) < 1 - tail, 0.0, 1.0)
    return low, high


def student(freedom: float, level: float = LEVEL) -> float:
    """How many standard errors a two-sided interval reaches with `freedom` degrees of freedom.

    >>> round(student(2), 3)
    4.303

    Raises:
        UsageError: Not more than zero degrees of freedom.
    """
    if not freedom > 0:
        raise UsageError(f"`freedom` got {freedom}; use more than 0")
    if freedom > 1e6:
        freedom = 1e6  # the normal distribution, to six digits

    def too_few(t: float) -> bool:
        return 1 - beta_cdf(freedom / (freedom + t * t), freedom / 2, 0.5) < level

    top = 1.0
    while too_few(top):
        top *= 2
    return _bracket(too_few, 0.0, top)[1]


def _bracket(below: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """The last point known to be `below`, and the first known not to be."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if below(middle):
            low = middle
        else:
            high = middle
    return low, high
