"""How many people a mean hides: the share of test images whose own score passes the threshold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..attackers.intervals import clopper_pearson
from ..attackers.scoring import corrected
from ..errors import AttackError


@dataclass(frozen=True)
class Share:
    """Of how many test images the own score is at or above the threshold.

    Attributes:
        hits, images: So many of so many.
        low, high: Exact (Clopper-Pearson) 95 % bounds of the share, in [0, 1].
        threshold: What was passed.
        largest: The largest own score.
        index: Row of the test image that has it.
    """

    hits: int
    images: int
    low: float
    high: float
    threshold: float
    largest: float
    index: int

    @property
    def share(self) -> float:
        """Share of the test images, in [0, 1]."""
        return self.hits / self.images


def own_scores(per_image: np.ndarray, floor: np.ndarray, scale: str = "corrected") -> np.ndarray:
    """Each image's score, (N,): its SSIM, corrected by its own floor unless `scale` is ``raw``.

    Raises:
        AttackError: Other images than the floor's, none at all, or a score that is not finite.
    """
    if per_image.shape != floor.shape or per_image.ndim != 1 or not len(per_image):
        raise AttackError(
            f"scores of {per_image.shape} images cannot be held against a floor of {floor.shape}"
        )
    own = np.asarray(per_image, float) if scale == "raw" else corrected(per_image, floor)
    if not np.isfinite(own).all():
        raise AttackError("an image's own score is not finite; the attack counts as failed")
    return own


def share_over(
    per_image: np.ndarray, floor: np.ndarray, threshold: float, scale: str = "corrected"
) -> Share:
    """Share of test images whose own score is at or above `threshold`.

    Args:
        per_image: SSIM per test image, (N,).
        floor: SSIM of the blind attacker on the same images, (N,).
        threshold: On the run's scale.
        scale: ``"corrected"`` or ``"raw"``.

    Raises:
        AttackError: As for `own_scores`.
    """
    own = own_scores(per_image, floor, scale)
    hits = int((own >= threshold).sum())
    low, high = clopper_pearson(hits, len(own))
    worst = int(own.argmax())
    return Share(hits, len(own), low, high, threshold, float(own[worst]), worst)


def strictest(shares: Iterable[Share]) -> Share:
    """The one of several (attackers, sides of the picture) with the largest upper bound.

    Raises:
        AttackError: There is none: nobody looked.
    """
    found = max(shares, key=lambda s: (s.high, s.largest), default=None)
    if found is None:
        raise AttackError("no attacker's images were counted")
    return found
