"""What the outside gets to see, and whether it could be told from noise."""

from __future__ import annotations

import math

import torch

from .outside import Outside


class Recorder:
    """An outside that notes all that it is sent, before it passes it on.

    Attributes:
        sent: By layer, what each request sent, in order.
    """

    def __init__(self, outside: Outside) -> None:
        self._outside = outside
        self.sent: dict[str, list[torch.Tensor]] = {}

    def __call__(self, name: str, masked: torch.Tensor) -> torch.Tensor:
        """Note and pass on."""
        self.sent.setdefault(name, []).append(masked.clone())
        return self._outside(name, masked)


def byte_uniformity(values: torch.Tensor) -> float:
    """The probability that uniform bytes look at least as uneven as those of `values` (int32).

    A chi-square test over the 256 values of a byte, for each of the four bytes of a word on its own
    (structure in the high bytes alone would drown among the low ones); the smallest of the four
    probabilities, times four. Wants at least 1,300 values, or it is not chi-square distributed.
    """
    data = values.contiguous().flatten()
    if len(data) < 1300:
        raise ValueError(f"`values` got {len(data)} values; use 1,300 or more")
    smallest = 1.0
    for byte in range(4):
        counts = torch.bincount((data >> (8 * byte)) & 255, minlength=256).to(torch.float64)
        expected = len(data) / 256
        statistic = float(((counts - expected) ** 2).sum() / expected)
        tail = torch.special.gammaincc(
            torch.tensor(255 / 2, dtype=torch.float64),
            torch.tensor(statistic / 2, dtype=torch.float64),
        )
        smallest = min(smallest, float(tail))
    return min(1.0, 4 * smallest)


def correlation(sent: torch.Tensor, values: torch.Tensor) -> float:
    """How many standard errors the correlation of `sent` with `values` (both int32) is off 0.

    Both as the signed integers that they are, element by element.
    """
    a = sent.flatten().to(torch.float64)
    b = values.flatten().to(torch.float64)
    a, b = a - a.mean(), b - b.mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm * math.sqrt(len(a)) if norm else 0.0
