"""One interval over test images and training seeds: the adversary's next training is neither ours.

The bootstrap of one training says how much the sample of test images may mislead, not what another
seed would have reached, and an adversary trains as often as he likes and keeps the best. So the
value is the strongest seed's. The upper end is the larger of two: the largest upper end of a seed
on its own, and Student's bound for one more training, whose variance is that between trainings and
that between images, with degrees of freedom by Satterthwaite (1946). The lower end is the largest
lower end of a seed: what one of our own trainings proves, a hundred others do not undo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..attackers.intervals import student
from ..attackers.scoring import Score, score
from ..errors import UsageError

FEWEST = 3  # trainings below which nothing is known of what another one would reach


@dataclass(frozen=True)
class Pooled:
    """What several trainings of one attacker reached on the same test images.

    Attributes:
        score: Of the strongest; its interval covers images and seeds.
        values: The score of each training.
        spread: Standard deviation of the values over trainings.
        another: Upper bound of what one more training reaches.
    """

    score: Score
    values: tuple[float, ...]
    spread: float
    another: float


def pooled(
    per_seed: Sequence[np.ndarray] | np.ndarray,
    floor: np.ndarray,
    *,
    scale: str = "corrected",
    seed: int = 0,
) -> Pooled:
    """The score of several trainings with an interval that covers images and seeds.

    Args:
        per_seed: SSIM per test image, (N,), of each training.
        floor: SSIM of the blind attacker on the same images, (N,).
        scale: ``"corrected"`` or ``"raw"``.
        seed: For the resampling of images; all trainings draw the same ones.

    Raises:
        UsageError: Fewer than three trainings.
        AttackError: Other images than the floor's.
    """
    if len(per_seed) < FEWEST:
        raise UsageError(
            f"`per_seed` got {len(per_seed)} trainings; use {FEWEST} or more, or nothing is known "
            "of what the next one would reach"
        )
    scores = [score(np.asarray(s, float), floor, scale=scale, seed=seed) for s in per_seed]
    values = np.array([s.value for s in scores])
    strongest = scores[int(values.argmax())]
    between = float(values.var(ddof=1))
    another = _another(values, between, _image_variance(scores))
    high = max(another, *(s.high for s in scores))
    low = max(s.low for s in scores)
    return Pooled(
        replace(strongest, low=low, high=high), tuple(values.tolist()), between**0.5, another
    )


def _another(values: np.ndarray, between: float, images: float) -> float:
    """Upper end of the interval of one more training's score over all images there could be."""
    seeds = between * (1 + 1 / len(values))
    total = seeds + images
    if total == 0:
        return float(values.mean())
    # The images' part has many degrees of freedom, the seeds' one fewer than there are trainings.
    freedom = (len(values) - 1) * (total / seeds) ** 2 if seeds else float("inf")
    return float(values.mean() + student(freedom) * total**0.5)


def _image_variance(scores: Sequence[Score]) -> float:
    """Of one training's score over samples of images, from the widest interval."""
    normal = student(float("inf"))
    return max((s.high - s.low) / (2 * normal) for s in scores) ** 2
