"""What to attack next: cheap attackers everywhere, then the others from the last cut backwards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from .limits import Doubt
from .rule import Evidence, judge

Job = tuple[int, str]


@dataclass(frozen=True)
class Plan:
    """The order of attacks.

    Going backwards, every attack at full budget is one that the answer needs: a cut counts as safe
    only with complete evidence for all later ones. The walk ends at the first cut that is not safe,
    since nothing before it can be. Nothing is skipped because an attack looks bad.

    Attributes:
        names: Cut names in execution order.
        ranks: Attacker -> rank; those of the lowest rank run on all cuts first, the first of them
            everywhere, the others where no leak is proven yet.
        threshold: Scores at or above it leak.
        could_win: Given the safe cuts so far and a cut, whether the answer could still be that cut
            (by latency), were it safe.
        first: A job to run before all others; if it proves a leak, nothing else is run.
    """

    names: Sequence[str]
    ranks: Mapping[str, int]
    threshold: float
    could_win: Callable[[Sequence[int], int], bool]
    first: Job | None = None

    @property
    def panel(self) -> list[str]:
        """Attackers, cheap ones first."""
        return sorted(self.ranks, key=lambda a: (self.ranks[a], a))

    @property
    def cheap(self) -> list[str]:
        """The attackers of the lowest rank."""
        lowest = min(self.ranks.values())
        return [a for a in self.panel if self.ranks[a] == lowest]

    def next(
        self,
        evidence: Mapping[Job, Evidence],
        running: Collection[Job] = (),
        doubts: Mapping[int, Doubt] | None = None,
    ) -> Job | None:
        """The next job that nobody runs, or None where nothing is left to start now.

        `doubts` as for `rule.judge`.
        """
        if self.first is not None:
            if self.first not in evidence:
                return None if self.first in running else self.first
            found = evidence[self.first].score
            if found is not None and found.low >= self.threshold:
                return None
        backwards = range(len(self.names) - 1, -1, -1)
        verdicts = judge(self.names, self.panel, evidence, self.threshold, doubts=doubts)
        cheap = self.cheap
        for i in backwards:
            for attacker in cheap:
                # Where a leak is proven, here or later, a second cheap attacker decides nothing.
                if attacker != cheap[0] and verdicts[i].suffix_low >= self.threshold:
                    continue
                if (i, attacker) not in evidence and (i, attacker) not in running:
                    return i, attacker
        safe: list[int] = []
        for i in backwards:
            verdict = verdicts[i]
            if verdict.safe:
                safe.append(i)
                continue
            if verdict.suffix_low >= self.threshold:
                return None
            if not any(self.could_win(safe, j) for j in range(i + 1)):
                return None
            missing = [a for a in self.panel if (i, a) not in evidence]
            for attacker in missing:
                if (i, attacker) not in running:
                    return i, attacker
            if not missing:
                return None  # complete and not safe: nothing earlier can be
            # Its attacks are running elsewhere: go on with the cut before it meanwhile.
        return None
