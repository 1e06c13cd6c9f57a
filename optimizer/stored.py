"""One attack as a trial of the study holds it, and as the split config shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..attackers.scoring import Score
from ..config import Attack
from .attempt import Reached

SECOND_FOR = "second_for"  # attribute of a second try: the key of the try that failed before it
TUNED = "tuned"  # in place of "key": a search must not take a tuned attack for a plain one
AGAIN = "the first try failed or was killed; this is the second, with safer settings"
_KINDS: dict[str, type | tuple[type, ...]] = {
    "ssim_per_image": list,
    "complete": bool,
    "settings": str,
    "note": str,
    "unplaced": str,
    "image_steps": int,
    "seconds": (int, float),
}


@dataclass(frozen=True, kw_only=True)
class StoredAttack:
    """What is kept of an attack that ran.

    Attributes:
        key: Content hash of everything that the result depends on.
        settings: `repr` of the attacker before it was fitted.
        per_image: SSIM per test image.
        complete: False where it stopped because the leak was proven.
        note: What a result must say of it.
        unplaced: Why pairs settle nothing at this cut, as in `FeatureStore`.
        image_steps, seconds: What it cost, members taken as fitted included.
    """

    key: str
    settings: str
    per_image: np.ndarray
    complete: bool
    note: str
    unplaced: str
    image_steps: int
    seconds: float

    @classmethod
    def of(cls, reached: Reached, key: str) -> StoredAttack:
        """What is to be kept of an attack."""
        return cls(
            key=key,
            settings=reached.settings,
            per_image=reached.per_image,
            complete=reached.complete,
            note=reached.note,
            unplaced=reached.unplaced,
            image_steps=reached.image_steps,
            seconds=round(reached.seconds, 3),
        )

    def to_attrs(self, key: str = "key") -> dict[str, Any]:
        """Attributes of a trial; `key` names the one that holds the key."""
        return {
            key: self.key,
            "settings": self.settings,
            "ssim_per_image": self.per_image.tolist(),
            "complete": self.complete,
            "note": self.note,
            "unplaced": self.unplaced,
            "image_steps": self.image_steps,
            "seconds": self.seconds,
        }

    @classmethod
    def from_attrs(
        cls, attrs: Mapping[str, Any], images: int, key: str = "key"
    ) -> StoredAttack | None:
        """What a trial holds, or None where that is not whole.

        Args:
            attrs: Attributes of the trial.
            images: How many test images there are.
            key: As in `to_attrs`.
        """
        wanted = {**_KINDS, key: str}
        if not all(isinstance(attrs.get(name), kind) for name, kind in wanted.items()):
            return None
        try:
            values = np.asarray(attrs["ssim_per_image"], float)
        except (TypeError, ValueError):
            return None
        if values.shape != (images,) or not np.isfinite(values).all():
            return None
        if (np.abs(values) > 1).any():
            return None
        others = {name: attrs[name] for name in _KINDS if name != "ssim_per_image"}
        return cls(key=attrs[key], per_image=values, **others)

    def shown(self, attacker: str, score: Score, *remarks: str) -> Attack:
        """The attack as a split config has it; `score` is that of its images."""
        return Attack(
            attacker=attacker,
            settings=self.settings,
            outcome="full budget" if self.complete else "stopped at proof",
            key=self.key,
            ssim_raw=score.raw,
            ssim_p95=score.p95,
            ssim_max=score.largest,
            score=score.value,
            low=score.low,
            high=score.high,
            image_steps=self.image_steps,
            seconds=self.seconds,
            note="; ".join(filter(None, [*remarks, self.note])),
        )
