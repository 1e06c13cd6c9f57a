"""What else keeps a cut from being safe, where the mean stays below the threshold: people.

A mean over test images hides the few that are rebuilt well. One that is as good as copied proves
that pictures cross the boundary, whatever the others say. How many may pass the threshold on their
own, or be picked out among others by what was rebuilt of them, is the user's to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..attackers.intervals import clopper_pearson
from ..config import Attack
from ..errors import UsageError

# An image's own score from which on it is as good as copied. On the raw scale flat pictures come
# close without anything of them having crossed.
COPIED: Mapping[str, float] = {"corrected": 0.9, "raw": 0.97}


@dataclass(frozen=True)
class Doubt:
    """Why a cut is not safe although its mean score is below the threshold, in one sentence.

    `proven`: it was seen to leak; else it may, and counts as leaking.
    """

    reason: str
    proven: bool = False


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is allowed of single images.

    Attributes:
        worst_share: Largest share of all images, in (0, 1], whose own score may reach the
            threshold, by its exact upper bound; None allows any.
        worst_retrieval: The same of images whose true photo is picked out among the test photos.
        copies: Whether one image that is as good as copied proves a leak.
    """

    worst_share: float | None = None
    worst_retrieval: float | None = None
    copies: bool = True

    def __post_init__(self) -> None:
        for name, value in (
            ("worst_share", self.worst_share),
            ("worst_retrieval", self.worst_retrieval),
        ):
            if value is not None and not 0 < value <= 1:
                raise UsageError(f"`{name}` got {value}; use a share above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class Held:
    """What attacks are held against.

    Attributes:
        limits: What is allowed of single images.
        threshold: Of scores.
        scale: ``corrected`` or ``raw``.
        images: How many test images there were.
    """

    limits: Limits
    threshold: float
    scale: str
    images: int

    def doubt(self, attacks: Iterable[Attack]) -> Doubt | None:
        """The gravest doubt that the attacks on one cut raise; None where there is none."""
        found = [d for a in attacks for d in self._of(a)]
        return max(found, key=lambda d: d.proven, default=None)

    def _of(self, attack: Attack) -> list[Doubt]:
        limits, found = self.limits, []
        if attack.score is None:
            return []  # it failed, which the rule knows
        copied = max(COPIED[self.scale], self.threshold)
        if limits.copies and attack.largest is not None and attack.largest >= copied:
            found.append(
                Doubt(
                    f"{attack.attacker} rebuilt one test image as good as perfectly (its own score "
                    f"is {attack.largest:.2f}), whatever the mean is",
                    True,
                )
            )
        if limits.worst_share is not None:
            what = f"reach {self.threshold:g} on their own"
            found += self._share("worst-share", what, attack.over, attack, limits.worst_share)
        if limits.worst_retrieval is not None:
            what = "are picked out by what was rebuilt of them"
            found += self._share(
                "worst-retrieval", what, attack.retrieved, attack, limits.worst_retrieval
            )
        return found

    def _share(
        self, option: str, what: str, hits: int | None, attack: Attack, most: float
    ) -> list[Doubt]:
        if hits is None:
            return [Doubt(f"nobody counted how many images {what}, which --{option} limits")]
        low, high = clopper_pearson(hits, self.images)
        if high <= most:
            return []
        return [
            Doubt(
                f"{hits} of {self.images} test images {what} with {attack.attacker}, at most "
                f"{high:.1%} of all images, and --{option} allows {most:.1%}",
                low > most,
            )
        ]
