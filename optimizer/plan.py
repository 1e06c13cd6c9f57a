"""What to attack next: cheap attackers everywhere, then the others where they decide.

That is from the last cut backwards; or, where one cut may stand for those after it, at cuts that
halve what is open.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from .limits import Doubt
from .rule import Cover, Evidence, Verdict, judge

Job = tuple[int, str]


@dataclass(frozen=True)
class Halving:
    """How a plan goes where an earlier cut, attacked in full, may stand for later ones.

    Attributes:
        full: Indices of the cuts for which none may.
        fastest: Of safe cuts, the one to use; None where it is none.
    """

    full: Collection[int]
    fastest: Callable[[Sequence[int]], int | None]


@dataclass(frozen=True)
class Plan:
    """The order of attacks.

    Going backwards, every attack at full budget is one that the answer needs: a cut counts as safe
    only with complete evidence for all later ones. The walk ends at the first cut that is not safe,
    since nothing before it can be. Nothing is skipped because an attack looks bad.

    With `halving`, the panel goes to the middle of the cuts that are open: a leak there settles all
    earlier ones, and where there is none the cut stands for all later ones. Cuts for which none
    may stand come first, and the cut that would be the answer is always attacked in full itself.

    Attributes:
        names: Cut names in execution order.
        ranks: Attacker -> rank; those of the lowest rank run on all cuts first, the first of them
            everywhere, the others where no leak is proven yet.
        threshold: Scores at or above it leak.
        could_win: Given the safe cuts so far and a cut, whether the answer could still be that cut
            (by latency), were it safe.
        first: A job to run before all others; if it proves a leak, nothing else is run.
        halving: Go by halves; None goes backwards.
    """

    names: Sequence[str]
    ranks: Mapping[str, int]
    threshold: float
    could_win: Callable[[Sequence[int], int], bool]
    first: Job | None = None
    halving: Halving | None = None

    @property
    def panel(self) -> list[str]:
        """Attackers, cheap ones first."""
        return by_rank(self.ranks)

    @property
    def cheap(self) -> list[str]:
        """The attackers of the lowest rank."""
        return cheapest(self.ranks)

    def cover(self, unplaced: Collection[int] = ()) -> Cover:
        """For which cuts an earlier one may stand, as `rule.judge` wants it."""
        if self.halving is None:
            return Cover()
        full = {*self.halving.full, *unplaced}
        return Cover([i for i in range(len(self.names)) if i not in full], self.cheap)

    def next(
        self,
        evidence: Mapping[Job, Evidence],
        running: Collection[Job] = (),
        doubts: Mapping[int, Doubt] | None = None,
        unplaced: Collection[int] = (),
    ) -> Job | None:
        """The next job that nobody runs, or None where nothing is left to start now.

        `doubts` as for `rule.judge`; `unplaced` are cuts that must be attacked themselves.
        """
        if self.first is not None:
            if self.first not in evidence:
                return None if self.first in running else self.first
            found = evidence[self.first].score
            if found is not None and found.low >= self.threshold:
                return None
        backwards = range(len(self.names) - 1, -1, -1)
        cover = self.cover(unplaced)
        verdicts = judge(
            self.names, self.panel, evidence, self.threshold, doubts=doubts, cover=cover
        )
        cheap = self.cheap
        for i in backwards:
            for attacker in cheap:
                # Where a leak is proven, here or later, a second cheap attacker decides nothing.
                if attacker != cheap[0] and verdicts[i].suffix_low >= self.threshold:
                    continue
                if (i, attacker) not in evidence and (i, attacker) not in running:
                    return i, attacker
        if self.halving is not None:
            if any(attacker in cheap for _, attacker in running):
                return None  # what they find says where to look
            return self._halve(self.halving, cover, verdicts, evidence, running)
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
            missing = self._missing(i, evidence)
            for job in missing:
                if job not in running:
                    return job
            if not missing:
                return None  # complete and not safe: nothing earlier can be
            # Its attacks are running elsewhere: go on with the cut before it meanwhile.
        return None

    def _missing(self, index: int, evidence: Mapping[Job, Evidence]) -> list[Job]:
        return [(index, a) for a in self.panel if (index, a) not in evidence]

    def _halve(
        self,
        halving: Halving,
        cover: Cover,
        verdicts: Sequence[Verdict],
        evidence: Mapping[Job, Evidence],
        running: Collection[Job],
    ) -> Job | None:
        def missing(i: int) -> list[Job]:
            return self._missing(i, evidence)

        def start(i: int) -> Job | None:
            return next((job for job in missing(i) if job not in running), None)

        def lost(i: int) -> bool:
            v = verdicts[i]
            reached = v.suffix_low >= self.threshold or (v.high or 0.0) >= self.threshold
            return reached or (not missing(i) and not v.safe)

        every = range(len(self.names))
        safe = [i for i in every if verdicts[i].safe]
        for i in reversed(every):  # cuts that count for themselves, before any that hang on them
            if verdicts[i].suffix_low >= self.threshold:
                break
            if i not in cover.cuts and missing(i):
                return start(i)
        low = max((i for i in every if lost(i)), default=-1)
        high = min((i for i in safe if i > low and verdicts[i].complete), default=len(every))
        there = [i for i in range(low + 1, high) if self.could_win(safe, i)]
        if there:
            asked = self.first[0] if self.first is not None else None
            order = _by_halves(there)
            # Whoever finds all of the first at work goes on with what may come after.
            found = (start(i) for i in ([asked, *order] if asked in there else order))
            return next((job for job in found if job is not None), None)
        best = halving.fastest(safe)
        return start(best) if best is not None and missing(best) else None


def by_rank(ranks: Mapping[str, int]) -> list[str]:
    """Attackers, cheap ones first."""
    return sorted(ranks, key=lambda a: (ranks[a], a))


def cheapest(ranks: Mapping[str, int]) -> list[str]:
    """The attackers of the lowest rank."""
    lowest = min(ranks.values())
    return [a for a in by_rank(ranks) if ranks[a] == lowest]


def _by_halves(indices: Sequence[int]) -> list[int]:
    """The middle one, then the middles of both halves, and so on.

    >>> _by_halves([0, 1, 2, 3, 4, 5, 6])
    [3, 1, 5, 0, 2, 4, 6]
    """
    found, parts = [], [list(indices)]
    while parts:
        part = parts.pop(0)
        if part:
            middle = len(part) // 2
            found.append(part[middle])
            parts += [part[:middle], part[middle + 1 :]]
    return found
