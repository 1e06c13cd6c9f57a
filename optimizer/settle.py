"""From a search to an answer that stands: tuned, swept, held against the whole model inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ..graph.build import Cut
from ..profilers.base import Profile
from .choose import Advice
from .confirm import confirm
from .rule import Grant, Verdict
from .search import Outcome, Search
from .sweep import Sweepers, Swept, sweep
from .tune import tune as tune_boundary


class Stages(Protocol):
    """Is told what is being done."""

    def stage(self, text: str, jobs: int | None = None) -> None:
        """A new stage begins."""


@dataclass(frozen=True, kw_only=True)
class Settling:
    """What is done until an answer stands.

    Attributes:
        every: Every cut of the graph, for the sweep; empty for none.
        sweepers: Who goes over them.
        covers: Whether a cut that was attacked in full may stand for later ones, which the sweep's
            attackers then go over.
        grant: What a cut that passes the rule may be called.
        tune: Settings tried for each attacker at the boundary; 0: none.
        workers: Attacks at a time.
        confirms: Whether the answer is trained again with other seeds and fewer images.
        adversary: Images that the adversary has; None is ten times the run's.
    """

    every: Sequence[Cut]
    sweepers: Sweepers
    grant: Grant
    covers: bool = False
    tune: int = 0
    workers: int = 1
    confirms: bool = False
    adversary: int | None = None


@dataclass(frozen=True)
class Marked:
    """What a sweep has said of cuts.

    Attributes:
        promoted: Nodes of those that were not asked for, and are never the answer.
        counted: Nodes of those that are attacked in full themselves: no other one stands for them.
    """

    promoted: frozenset[int] = frozenset()
    counted: frozenset[int] = frozenset()

    def with_more(self, suspects: Sequence[Cut], added: Sequence[Cut]) -> Marked:
        """With further cuts that may leak, of which some were not asked for."""
        return Marked(
            self.promoted | {c.node for c in added}, self.counted | {c.node for c in suspects}
        )


@dataclass(frozen=True)
class Settled:
    """The answer, and all that it stands on.

    Attributes:
        cuts: Those asked for, and those that a sweep had attacked in full.
        timing: Their latencies.
        verdicts: The rule applied to them.
        chosen: Index of the answer, or None.
        advice: Whether to split at all; None without an answer.
        outcome: All attacks on these cuts, and what everything cost.
        swept: The last sweep; None where there was none.
        promoted: Nodes of the cuts that a sweep had attacked in full.
        grant: What a cut that passes the rule may be called.
        remarks: What the result must say.
    """

    cuts: list[Cut]
    timing: Profile
    verdicts: list[Verdict]
    chosen: int | None
    advice: Advice | None
    outcome: Outcome
    swept: Swept | None
    promoted: frozenset[int]
    grant: Grant
    remarks: list[str] = field(default_factory=list)


def settle(
    listed: Sequence[Cut],
    timing: Profile,
    make: Callable[[list[Cut], Profile, Marked], Search],
    time_of: Callable[[list[Cut]], Profile],
    effort: Settling,
    watcher: Stages,
) -> Settled:
    """Search, tune, sweep and confirm until no cut is left, from the answer on, that may leak.

    A cut that a sweep suspects is attacked in full like those asked for, but is never the answer
    unless it was one of them. If it leaks, the answer moves on, and the sweep is repeated from
    there.

    Args:
        listed: The cuts asked for.
        timing: Their latencies.
        make: A search over given cuts with their latencies, some of them marked.
        time_of: Measures further cuts.
        effort: What is done.
        watcher: Is told of stages.
    """
    cuts, marked, swept = list(listed), Marked(), None
    cost, first = Outcome(), True
    search = make(cuts, timing, marked)
    while True:
        before = (search.outcome.run, search.outcome.image_steps, search.outcome.seconds)
        outcome = search.run(effort.workers)
        remarks = tune_boundary(search, effort.tune, watcher.stage) if effort.tune else []
        _add(cost, outcome, before, first=first)
        chosen = search.answer()
        if chosen is None:
            break
        if effort.every:
            swept = _swept(search, chosen, effort, watcher)
            _add(cost, swept.outcome, first=first)
            first = False
            if swept.suspects:
                names = ", ".join(cut.name for cut in swept.suspects[:4])
                watcher.stage(f"attacking {len(swept.suspects)} cuts that may leak: {names}")
                listed_now = {cut.node for cut in cuts}
                added = [cut for cut in swept.suspects if cut.node not in listed_now]
                timing = _joined(cuts, timing, added, time_of(added)) if added else timing
                marked = marked.with_more(swept.suspects, added)
                cuts = sorted([*cuts, *added], key=lambda cut: cut.node)
                cuts = [replace(cut, index=i) for i, cut in enumerate(cuts)]
                search = make(cuts, timing, marked)
                continue
        chosen = _confirmed(search, effort, cost, watcher)
        if not search.open():
            break
        first = False
        # What stood for later cuts does not hold: they are attacked, and what follows swept anew.
        watcher.stage("attacking later cuts in full")
    outcome.run, outcome.reused = cost.run, cost.reused
    outcome.image_steps, outcome.seconds = cost.image_steps, cost.seconds
    return Settled(
        cuts=cuts,
        timing=timing,
        verdicts=search.verdicts(),
        chosen=chosen,
        advice=search.candidates.advise(chosen),
        outcome=outcome,
        swept=swept if chosen is not None else None,
        promoted=marked.promoted,
        grant=effort.grant,
        remarks=remarks,
    )


def _swept(search: Search, chosen: int, effort: Settling, watcher: Stages) -> Swept:
    start, asked = chosen, search.plan.first
    if asked is not None and search.verdicts()[asked[0]].safe:
        start = min(start, asked[0])  # a cut whose verdict was asked for, as `check` does
    here = search.cuts[start]
    count = sum(cut.node >= here.node for cut in effort.every)
    watcher.stage(f"sweeping all {count} cuts from {here.name} on", count)
    return sweep(search, effort.every, start, effort.sweepers, effort.workers)


def _confirmed(search: Search, effort: Settling, cost: Outcome, watcher: Stages) -> int | None:
    """The answer that stands after other seeds and fewer images; a later one was swept too."""
    if effort.confirms:
        for more in confirm(search, effort.adversary, effort.workers, watcher.stage):
            _add(cost, more.outcome)
    return search.answer()


def _add(
    cost: Outcome,
    more: Outcome,
    before: tuple[int, int, float] = (0, 0, 0.0),
    first: bool = False,
) -> None:
    """Count what was spent since `before`; only the first round meets what earlier runs made."""
    cost.run += more.run - before[0]
    cost.reused += more.reused if first else 0
    cost.image_steps += more.image_steps - before[1]
    cost.seconds += more.seconds - before[2]


def _joined(cuts: Sequence[Cut], timing: Profile, added: Sequence[Cut], more: Profile) -> Profile:
    """Latencies of both, in execution order."""
    both = [*zip(cuts, timing.cuts, strict=True), *zip(added, more.cuts, strict=True)]
    both.sort(key=lambda pair: pair[0].node)
    return replace(timing, cuts=[latency for _, latency in both])
