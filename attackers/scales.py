"""One reconstruction scored at several sizes: what is blurred at 224 pixels may be a face at 112.

A picture is rebuilt once, at the run's side, and scaled down together with its original; every size
has a floor of its own, that of an attacker which is blind at that size. The strict score is the
largest over the sizes. Its interval takes the largest of the ends: the largest of the upper ends is
below the largest true mean no more often than the upper end of that one size is below its own mean,
and a lower end at or above the threshold at any size is a leak at that size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..errors import AttackError, ConfigError
from ..images.load import at_resolution
from .base import Reconstruct, as_images
from .rows import Rows, as_rows
from .scoring import WINDOW, Score, score, ssim

SMALLEST = 64  # pixels; halves of the side below it are not scored
PerSide = Mapping[int, np.ndarray]
Look = Callable[[range, torch.Tensor], None]
_STORED = 6  # digits of a stored SSIM


def sides_of(side: int) -> tuple[int, ...]:
    """`side` and its halves (rounded down) while they have at least 64 pixels, largest first.

    The side itself is always there, however small.

    >>> sides_of(224), sides_of(299), sides_of(96)
    ((224, 112), (299, 149, 74), (96,))
    """
    if side < WINDOW:
        raise AttackError(f"SSIM needs pictures of at least {WINDOW} pixels, and these have {side}")
    sides = [side]
    while sides[-1] // 2 >= SMALLEST:
        sides.append(sides[-1] // 2)
    return tuple(sides)


def sides_at(side: int, fixed: bool) -> tuple[int, ...]:
    """`sides_of`, or `side` alone where it was asked for, or is the published way."""
    return (side,) if fixed else sides_of(side)


def scaled(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images (N, 3, R, R) in [0, 1] at another side, bilinear with antialiasing; in [0, 1]."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(
        images, (side, side), mode="bilinear", antialias=True, align_corners=False
    ).clamp(0, 1)


def ssim_at(
    reconstruct: Reconstruct,
    features: Rows | np.ndarray,
    images: np.ndarray,
    sides: Sequence[int],
    *,
    batch: int = 16,
    look: Look | None = None,
) -> dict[int, np.ndarray]:
    """SSIM of each rebuilt image against its original at each side, (N,) float64 by side.

    Every picture is rebuilt once. At the images' own side this is `scoring.ssim_of`.

    Args:
        reconstruct: From feature maps (N, C, h, w) to images (N, 3, R, R).
        features: One row per image.
        images: uint8 originals, (N, 3, R, R).
        sides: At which to compare, R or less.
        batch: Images at a time.
        look: Called with the rows of each batch and what was rebuilt of them, clamped, on the CPU,
            for other measures of the same pictures.

    Raises:
        AttackError: A score is not finite, a picture has another size, or a side is too large.
    """
    own = images.shape[-1]
    if not sides or max(sides) > own or min(sides) < WINDOW:
        raise AttackError(f"pictures of {own} pixels cannot be scored at {list(sides)} pixels")
    rows = as_rows(features)
    originals = {side: at_resolution(images, side) for side in sides}
    found: dict[int, list[torch.Tensor]] = {side: [] for side in sides}
    with torch.no_grad():
        for start in range(0, len(images), batch):
            index = range(start, min(start + batch, len(images)))
            rebuilt = reconstruct(rows.take(index)).cpu().clamp(0, 1)
            if rebuilt.shape != (len(index), 3, own, own):
                raise AttackError(
                    f"pictures of shape {tuple(rebuilt.shape)} were rebuilt where "
                    f"{(len(index), 3, own, own)} was wanted"
                )
            for side in sides:
                truth = as_images(originals[side][index.start : index.stop])
                found[side].append(ssim(scaled(rebuilt, side), truth))
            if look is not None:
                look(index, rebuilt)
    result = {side: torch.cat(parts).double().numpy() for side, parts in found.items()}
    if not all(np.isfinite(values).all() for values in result.values()):
        raise AttackError("an SSIM score is not finite; the attack counts as failed")
    return result


@dataclass(frozen=True)
class ScaledScore:
    """What one attacker reached on the test images at every side that they were compared at.

    Attributes:
        by_side: The score at each side in pixels, largest side first.
    """

    by_side: Mapping[int, Score]

    @property
    def side(self) -> int:
        """The side at which the mean is largest."""
        return max(self.by_side, key=lambda side: self.by_side[side].value)

    @property
    def strict(self) -> Score:
        """The score at the worst side, with the largest lower and upper end over all sides."""
        worst = self.by_side[self.side]
        return Score(
            raw=worst.raw,
            p95=worst.p95,
            largest=worst.largest,
            value=worst.value,
            low=max(s.low for s in self.by_side.values()),
            high=max(s.high for s in self.by_side.values()),
            scale=worst.scale,
        )

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values by side, which `of_dict` reads back."""
        return {str(side): asdict(found) for side, found in self.by_side.items()}

    @classmethod
    def of_dict(cls, values: Any) -> ScaledScore:
        """From plain values.

        Raises:
            ConfigError: They are not what `as_dict` gives: no side, a field missing or not finite.
        """
        try:
            by_side = {int(side): Score(**found) for side, found in values.items()}
            numbers = [v for s in by_side.values() for k, v in asdict(s).items() if k != "scale"]
            whole = by_side and all(math.isfinite(v) for v in numbers)
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"scores by side cannot be read: {error}") from error
        if not whole:
            raise ConfigError("scores by side cannot be read: none, or one that is not finite")
        return cls(dict(sorted(by_side.items(), reverse=True)))


def score_at(
    per_side: PerSide, floors: PerSide, *, scale: str = "corrected", seed: int = 0
) -> ScaledScore:
    """The score at every side, each against the floor of its own side.

    All sides draw the same images in their bootstrap.

    Args:
        per_side: SSIM per test image, (N,), by side.
        floors: The same of the blind attacker of that side, for at least these sides.
        scale: ``"corrected"`` or ``"raw"``.
        seed: For the resampling.

    Raises:
        AttackError: No side, one without a floor, or other images than the floor's.
    """
    lacking = [side for side in per_side if side not in floors]
    if not per_side or lacking:
        raise AttackError(f"there is no floor at {lacking} pixels to hold scores against")
    return ScaledScore(
        {
            side: score(per_side[side], floors[side], scale=scale, seed=seed)
            for side in sorted(per_side, reverse=True)
        }
    )


def plain(per_side: PerSide) -> dict[str, list[float]]:
    """SSIM per image and side as JSON takes it, rounded as results are stored."""
    return {str(side): values.round(_STORED).tolist() for side, values in per_side.items()}


def of_plain(values: Any, sides: Sequence[int], count: int) -> dict[int, np.ndarray] | None:
    """SSIM per image and side from what `plain` gave; None where it is not all of that.

    A result that was stored with fewer sides, images or finite numbers is no result: run it again.

    Args:
        values: What was stored.
        sides: All of these must be there.
        count: Test images.
    """
    if not isinstance(values, Mapping):
        return None
    found = {}
    for side in sides:
        try:
            array = np.asarray(values.get(str(side)), float)
        except (TypeError, ValueError):
            return None
        if array.shape != (count,) or not np.isfinite(array).all():
            return None
        found[side] = array
    return found
