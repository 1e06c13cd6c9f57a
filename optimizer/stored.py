"""One attack as a trial of the study holds it, and as the split config shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..attackers.retrieval import Identified
from ..attackers.scales import PerSide, of_plain, plain
from ..config import Attack, SideScore
from ..errors import ConfigError
from .attempt import Bench, Reached
from .shares import share_over, strictest

SECOND_FOR = "second_for"  # attribute of a second try: the key of the try that failed before it
TUNED = "tuned"  # in place of "key": a search must not take a tuned attack for a plain one
AGAIN = "the first try failed or was killed; this is the second, with safer settings"
_KINDS: dict[str, type | tuple[type, ...]] = {
    "ssim_per_side": dict,
    "retrieved": dict,
    "complete": bool,
    "rising": bool,
    "settings": str,
    "note": str,
    "unplaced": str,
    "image_steps": int,
    "seconds": (int, float),
}


def scores_of(reached: Reached) -> dict[str, float]:
    """Figures of an attack as attributes of its trial, for whoever looks at the study."""
    score = reached.score
    return {"score": score.value, "score_high": score.high, "ssim_raw": score.raw}


@dataclass(frozen=True, kw_only=True)
class StoredAttack:
    """What is kept of an attack that ran.

    Attributes:
        key: Content hash of everything that the result depends on.
        settings: `repr` of the attacker before it was fitted.
        per_side: SSIM per test image, by side at which pictures were compared.
        retrieved: In how many test images the true photo was the one that was picked out.
        complete: False where it stopped because the leak was proven.
        rising: Whether it was still getting better when its budget ended.
        note: What a result must say of it.
        unplaced: Why pairs settle nothing at this cut, as in `FeatureStore`.
        image_steps, seconds: What it cost, members taken as fitted included.
    """

    key: str
    settings: str
    per_side: dict[int, np.ndarray]
    retrieved: Identified
    complete: bool
    rising: bool
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
            per_side=reached.per_side,
            retrieved=reached.retrieved,
            complete=reached.complete,
            rising=reached.rising,
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
            "ssim_per_side": plain(self.per_side),
            "retrieved": self.retrieved.as_dict(),
            "complete": self.complete,
            "rising": self.rising,
            "note": self.note,
            "unplaced": self.unplaced,
            "image_steps": self.image_steps,
            "seconds": self.seconds,
        }

    @classmethod
    def from_attrs(
        cls, attrs: Mapping[str, Any], floors: PerSide, key: str = "key"
    ) -> StoredAttack | None:
        """What a trial holds, or None where that is not whole.

        Args:
            attrs: Attributes of the trial.
            floors: Of the sides and test images that there must be.
            key: As in `to_attrs`.
        """
        wanted = {**_KINDS, key: str}
        if not all(isinstance(attrs.get(name), kind) for name, kind in wanted.items()):
            return None
        images = len(next(iter(floors.values())))
        per_side = of_plain(attrs["ssim_per_side"], list(floors), images)
        if per_side is None or any((np.abs(v) > 1).any() for v in per_side.values()):
            return None
        try:
            retrieved = Identified.of_dict(attrs["retrieved"])
        except ConfigError:
            return None
        if retrieved.images != images:
            return None
        own = ("ssim_per_side", "retrieved")
        others = {name: attrs[name] for name in _KINDS if name not in own}
        return cls(key=attrs[key], per_side=per_side, retrieved=retrieved, **others)

    def shown(self, attacker: str, bench: Bench, threshold: float, *remarks: str) -> Attack:
        """The attack as a split config has it, scored on `bench` and held against `threshold`."""
        scores = bench.score(self.per_side)
        score = scores.strict
        shares = [
            share_over(values, bench.floors[side], threshold, bench.scale)
            for side, values in self.per_side.items()
        ]
        share = strictest(shares)
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
            sides=[
                SideScore(side=side, raw=s.raw, score=s.value, low=s.low, high=s.high)
                for side, s in scores.by_side.items()
            ],
            rising=self.rising,
            over=share.hits,
            over_high=share.high,
            largest=max(s.largest for s in shares),
            retrieved=self.retrieved.found,
            retrieved_high=self.retrieved.high,
            image_steps=self.image_steps,
            seconds=self.seconds,
            note="; ".join(filter(None, [*remarks, self.note])),
        )
