"""What one attack goes by, as data: the same here and at a worker on another machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..attackers.base import Attacker, Fitted, Key
from ..graph.build import Cut
from .attempt import Bench, Reached, Wish, attempt_until_settled


@dataclass(frozen=True, kw_only=True)
class AttackTerms:
    """How one attack is to go, and how far.

    Attributes:
        seed: Of the run or of one more training.
        images: So many training images; None is all.
        leaks_from: Training may stop once a score of so much is proven; None never stops early.
        private: It takes nothing from attackers fitted before and leaves nothing to later ones.
        ceiling: An attack that is still rising may take at most so many times its epochs.
        threshold: What it is held against while it rises.
    """

    seed: int
    threshold: float
    images: int | None = None
    leaks_from: float | None = None
    private: bool = False
    ceiling: int = 1

    def wish(
        self,
        also: Sequence[Cut],
        fitted: dict[Key, Fitted],
        progress: Callable[[float], None],
    ) -> Wish:
        """The same for `attempt`, with what is at hand where it runs."""
        return Wish(
            also=also,
            images=self.images,
            leaks_from=self.leaks_from,
            fitted=fitted,
            private=self.private,
            progress=progress,
        )

    def attempted(self, bench: Bench, cut: Cut, attacker: Attacker, wish: Wish) -> Reached:
        """Attack a cut by these terms.

        Raises:
            Failed: The attack failed.
            StorageError: The disk or the storage did; the attack says nothing.
        """
        own = bench if bench.seed == self.seed else replace(bench, seed=self.seed)
        return attempt_until_settled(own, cut, attacker, wish, self.ceiling, self.threshold)
