"""Would the adversary's data break the cut? The learning curve, and an upper bound of its end.

Scores at a quarter, a half and all of our images are extrapolated to as many as the adversary has,
over the logarithm of the number of images. Three points do not tell how a curve bends, so the bound
takes the most that each reading of them allows:

- *the last step goes on*: every doubling adds what the last one added. A power law a - b n^-c adds
  less each time, whatever c is, so this bounds all of them;
- *the straight line* through all points by least squares, for where the last step fell short by
  chance;
- *acceleration*, where the resamples agree that steps grow: the parabola through the last three.

All are computed in each of many resamples: test images are drawn once for all points, which are
scored on the same ones (floors with them), and each point moves by what trainings differ in, as
does the adversary's own training at the end.
No bound is below the upper end of anything that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..attackers.scoring import score
from ..errors import AttackError, UsageError
from .seeds import FEWEST, pooled

TIMES = 10  # as many images as ours has an adversary of whom nothing else is known
POINTS = 3
_SURE = 0.05  # share of resamples without acceleration up to which it is believed


@dataclass(frozen=True)
class Rung:
    """One attacker trained on so many images, on the test images that all rungs share.

    Attributes:
        images: Training images, mirror images not counted.
        per_image: SSIM per test image, (N,) for one training or (S, N) for several seeds.
    """

    images: int
    per_image: np.ndarray = field(repr=False)

    @property
    def trainings(self) -> np.ndarray:
        """(S, N), float64."""
        return np.atleast_2d(np.asarray(self.per_image, float))


@dataclass(frozen=True)
class Terms:
    """What a curve is held against.

    Attributes:
        threshold: Scores at or above it leak.
        adversary: Images that the adversary has; None is ten times the largest rung. Fewer than
            the largest rung count as that many: what was measured was measured.
        scale: ``"corrected"`` or ``"raw"``.
        spread: Standard deviation of the score between trainings, where it is known from
            elsewhere; None takes it from rungs with several seeds.
        seed: For the resampling.
        resamples: How many.
        lead: By how much another attacker was ahead of this one with all images; every point is
            taken for so much stronger.
    """

    threshold: float
    adversary: int | None = None
    scale: str = "corrected"
    spread: float | None = None
    seed: int = 0
    resamples: int = 2000
    lead: float = 0.0


@dataclass(frozen=True)
class Point:
    """A measured point of the curve; `value` is the strongest training's."""

    images: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Extrapolation:
    """What the attacker may reach with the adversary's data.

    Attributes:
        images: The adversary's number.
        value: The score expected there: the largest of the readings, without noise.
        high: Its upper bound, at least that of every point measured.
        threshold: What they are held against.
        settles: Training images at which the upper bound crosses the threshold: a run with so many
            sees whether the cut leaks. None where it stays below.
        points: What was measured, fewest images first.
        accelerating: Whether steps were seen to grow.
    """

    images: int
    value: float
    high: float
    threshold: float
    settles: int | None
    points: tuple[Point, ...]
    accelerating: bool = False

    @property
    def below(self) -> bool:
        """Whether the upper bound stays below the threshold."""
        return self.high < self.threshold

    @property
    def reason(self) -> str:
        """The verdict in one sentence."""
        last = self.points[-1]
        if self.below:
            return (
                f"with {self.images} images the attack reaches {self.value:.2f}, at most "
                f"{self.high:.2f}, which is below {self.threshold:g}"
            )
        if last.high >= self.threshold:
            return (
                f"the attack reaches {last.value:.2f}, at most {last.high:.2f}, with "
                f"{last.images} images already, which is not below {self.threshold:g}"
            )
        grows = "is still learning faster with each step" if self.accelerating else "still learns"
        return (
            f"the attack {grows}: {last.value:.2f} with {last.images} images may be "
            f"{self.high:.2f} with {self.images}, which is not below {self.threshold:g}; a run "
            f"with {self.settles} images would settle it"
        )


def extrapolate(rungs: Sequence[Rung], floor: np.ndarray, terms: Terms) -> Extrapolation:
    """Bound what an attacker reaches with more images.

    Args:
        rungs: At least three numbers of images, all scored on the same test images.
        floor: SSIM of the blind attacker on those, (N,).
        terms: Threshold, the adversary's number, and how to resample.

    Raises:
        UsageError: Fewer than three numbers of images, the same twice, or nothing from which
            the spread between trainings is known.
        AttackError: Other test images than the floor's, or a score that is not finite.
    """
    rungs = sorted(rungs, key=lambda r: r.images)
    sizes = [r.images for r in rungs]
    if len(set(sizes)) < POINTS or len(set(sizes)) < len(sizes) or sizes[0] < 1:
        raise UsageError(f"`rungs` got {sizes} images; use {POINTS} different numbers or more")
    for rung in rungs:
        if rung.trainings.shape[1:] != floor.shape or not np.isfinite(rung.trainings).all():
            raise AttackError(
                f"scores of {rung.trainings.shape[1:]} images, all of which must be finite, cannot "
                f"be held against a floor of {floor.shape}"
            )
    points = tuple(_measured(r, floor, terms) for r in rungs)
    target = max(terms.adversary or TIMES * sizes[-1], sizes[-1])
    curves, own = _resampled(rungs, floor, terms)
    accelerating = bool(np.mean(curves.growth <= 0) <= _SURE)
    highest = max(p.high for p in points)

    def high(images: int) -> float:
        reached = curves.at(math.log(images), accelerating) + own
        return max(highest, float(np.quantile(reached, 0.975)))

    means = np.array([[_mean(r, floor, terms.scale) for r in rungs]]) + terms.lead
    without_noise = _Curves(curves.x, means)
    value = float(without_noise.at(math.log(target), accelerating)[0])
    value = max(value, *(p.value for p in points))
    reached = max(high(target), value)
    settles = None
    if reached >= terms.threshold:
        settles = _crossing(high, sizes[-1], target, terms.threshold)
    return Extrapolation(target, value, reached, terms.threshold, settles, points, accelerating)


class _Curves:
    """Curves through the points, one a resample, and the most that each may reach.

    Args:
        x: Logarithms of the numbers of images, (K,), ascending.
        y: Scores, (B, K).
    """

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = x, y
        self.step = (y[:, -1] - y[:, -2]) / (x[-1] - x[-2])
        before = (y[:, -2] - y[:, -3]) / (x[-2] - x[-3])
        self.growth = (self.step - before) / (x[-1] - x[-3])  # of the parabola's square term
        self.slope = ((y - y.mean(1, keepdims=True)) @ (x - x.mean())) / ((x - x.mean()) ** 2).sum()

    def at(self, x: float, accelerating: bool) -> np.ndarray:
        """The largest of all readings at `x`, (B,); never below the last point."""
        beyond = x - self.x[-1]
        last = self.y[:, -1]
        goes_on = last + self.step.clip(0) * beyond
        straight = self.y.mean(1) + self.slope.clip(0) * (x - self.x.mean())
        readings = [last, goes_on, straight]
        if accelerating:
            readings.append(goes_on + self.growth.clip(0) * beyond * (x - self.x[-2]))
        return np.asarray(np.max(readings, axis=0))


def _measured(rung: Rung, floor: np.ndarray, terms: Terms) -> Point:
    """The strongest training of a rung; with three or more its interval covers seeds too."""
    trainings = rung.trainings
    if len(trainings) >= FEWEST:
        scores = [pooled(trainings, floor, scale=terms.scale, seed=terms.seed).score]
    else:
        scores = [score(t, floor, scale=terms.scale, seed=terms.seed) for t in trainings]
    return Point(
        rung.images,
        max(s.value for s in scores) + terms.lead,
        max(s.low for s in scores) + terms.lead,
        max(s.high for s in scores) + terms.lead,
    )


def _mean(rung: Rung, floor: np.ndarray, scale: str) -> float:
    return float(_unclipped(rung.trainings.mean(), floor.mean(), scale))


def _unclipped(raw: Any, floor: Any, scale: str) -> np.ndarray:
    """The score without the clip at 0, which would hide a rise that begins below the floor."""
    if scale == "raw":
        return np.asarray(raw, float)
    return np.asarray((np.asarray(raw) - floor) / np.maximum(1.0 - np.asarray(floor), 1e-9))


def _resampled(
    rungs: Sequence[Rung], floor: np.ndarray, terms: Terms
) -> tuple[_Curves, np.ndarray]:
    """The curve in each resample, and by how much the adversary's own training is off it, (B,)."""
    rng = np.random.default_rng(terms.seed)
    index = rng.integers(0, len(floor), (terms.resamples, len(floor)))
    under = floor[index].mean(1)
    spread, freedom = _spread(rungs, floor, terms)

    def noise() -> np.ndarray:
        # Student's t: the spread itself is known from a few trainings.
        return spread * np.asarray(rng.standard_t(freedom, terms.resamples))

    columns = []
    for rung in rungs:
        mean = _unclipped(rung.trainings.mean(0)[index].mean(1), under, terms.scale)
        columns.append(mean + terms.lead + noise() / len(rung.trainings) ** 0.5)
    x = np.log(np.array([r.images for r in rungs], float))
    return _Curves(x, np.stack(columns, 1)), noise()


def _spread(rungs: Sequence[Rung], floor: np.ndarray, terms: Terms) -> tuple[float, float]:
    """Standard deviation between trainings, over all rungs, and its degrees of freedom."""
    squares, freedom = 0.0, 0
    for rung in rungs:
        values = _unclipped(rung.trainings.mean(1), floor.mean(), terms.scale)
        squares += float(((values - values.mean()) ** 2).sum())
        freedom += len(values) - 1
    own = (squares / freedom) ** 0.5 if freedom else None
    given = terms.spread
    if given is not None and not (math.isfinite(given) and given >= 0):
        raise UsageError(f"`spread` got {given}; use 0 or more")
    if own is None and given is None:
        raise UsageError(
            "`rungs` got one training for each number of images; use two seeds at one of them or "
            "more, or give `spread`"
        )
    if own is None:
        return given or 0.0, FEWEST - 1
    return max(own, given or 0.0), freedom


def _crossing(high: Callable[[int], float], fewest: int, most: int, threshold: float) -> int:
    """The smallest number of images at which the upper bound is at or above the threshold."""
    low, top = fewest, most
    if high(low) >= threshold:
        return low
    while top - low > max(1, low // 100):
        middle = int(math.sqrt(low * top)) if top > low + 2 else low + 1
        middle = min(max(middle, low + 1), top - 1)
        if high(middle) >= threshold:
            top = middle
        else:
            low = middle
    return top
