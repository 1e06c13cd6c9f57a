"""Cuts that were not sampled: cheap attackers on every cut from the answer to the end.

The rule asks for all later cuts, and the search attacks a sample of them. What leaks more than its
neighbours may lie between two sampled cuts, or where several tensors cross. So before an answer
stands, `sketch`, a cheap attacker, goes over every cut of the graph from there on, and least
squares on the public head where that is close enough to affine. How much `sketch` misses is
measured in the same run, on the cuts that were attacked in full: a cut where the panel's largest
lead over it, or largest ratio to it, would carry it to the threshold may leak, and is attacked in
full too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..attackers.base import Attacker
from ..attackers.features import FeatureStore
from ..attackers.newton import Newton
from ..attackers.sketch import Sketch
from ..config import Attack
from ..config import Sweep as StoredSweep
from ..graph.build import Cut
from .plan import Job
from .rule import Verdict
from .search import Outcome, Search

_PAIRS = 8  # images between which a head is held against an affine one


@dataclass(frozen=True)
class Swept:
    """What a sweep found.

    Attributes:
        attackers: ``repr`` of those that ran.
        lead: The most that the panel's upper end was above the sweep's on any attacked cut.
        proportion: The largest ratio of the two, at least 1.
        attacks: By cut, what was reached; every cut that was not attacked in full.
        suspects: Those of them that may leak.
        outcome: What it cost.
    """

    attackers: list[str]
    lead: float
    proportion: float
    attacks: list[tuple[Cut, list[Attack]]]
    suspects: list[Cut]
    outcome: Outcome = field(repr=False)


class _Sweeping(Search):
    """The sweep's attacks: stored and resumed like others, and never evidence of a safe cut."""

    purpose = "sweep"
    certifies = False
    keeps_pictures = False  # a sweep has many cuts, and nobody looks at them one by one

    def __init__(
        self,
        search: Search,
        cuts: Sequence[Cut],
        panel: Mapping[str, Attacker],
        bent: frozenset[int],
    ) -> None:
        course = replace(search.course.aside(), attack=True)
        listener, crew = search.listener, search.crew
        super().__init__(cuts, [], search.bench, panel, course, search.storage, listener, crew)
        self.bent = bent  # cuts whose head is too far from affine for newton

    def _next_of_all(self, running: Collection[Job]) -> Job | None:
        for i in reversed(range(len(self.cuts))):
            for attacker in self.plan.panel:
                if attacker == Newton.name and i in self.bent:
                    continue
                if (i, attacker) not in self.outcome.evidence and (i, attacker) not in running:
                    return i, attacker
        return None


def sweep(search: Search, cuts: Sequence[Cut], chosen: int, sketch: Sketch, workers: int) -> Swept:
    """Go over `cuts` from the chosen one to the end, and say which of them may leak.

    Args:
        search: A search that has run, with an answer.
        cuts: Every cut of the graph, in execution order.
        chosen: Index of the answer in the search's cuts.
        sketch: The attacker for all of them.
        workers: Attacks at a time.
    """
    attacked = {
        search.cuts[i].node: verdict
        for i, verdict in enumerate(search.verdicts())
        if verdict.complete and i >= chosen
    }
    later = [c for c in cuts if c.node >= search.cuts[chosen].node]
    rest = [c for c in later if c.node not in attacked]
    panel: dict[str, Attacker] = {sketch.name: sketch}
    newton = search.panel.get(Newton.name)
    if isinstance(newton, Newton):
        panel[newton.name] = newton
    bent = frozenset[int]()
    if isinstance(newton, Newton):
        far = _departures(search.bench.store, rest)
        bent = frozenset(
            i for i, c in enumerate(later) if c.node in attacked or far[c.node] > newton.reach
        )
    sweeping = _Sweeping(search, later, panel, bent)
    outcome = sweeping.run(workers)
    mine = {
        cut.node: [outcome.attacks[i, a] for a in panel if (i, a) in outcome.attacks]
        for i, cut in enumerate(later)
    }
    lead, proportion = _ahead([(full, mine[node][0]) for node, full in attacked.items()])
    most = bound(search.course.threshold, lead, proportion)
    return Swept(
        attackers=[repr(a) for a in panel.values()],
        lead=lead,
        proportion=proportion,
        attacks=[(cut, mine[cut.node]) for cut in rest],
        suspects=[cut for cut in rest if _suspect(mine[cut.node], most)],
        outcome=outcome,
    )


def _ahead(pairs: Sequence[tuple[Verdict, Attack]]) -> tuple[float, float]:
    """How far the panel's upper end was above the sweep's, at most: difference and ratio."""
    lead, proportion = 0.0, 1.0
    for full, cheap in pairs:
        if full.high is None or full.low is None:
            continue
        high = cheap.high or 0.0
        lead = max(lead, full.high - high)
        # Below the width of an interval a ratio is one of noise.
        proportion = max(proportion, full.high / max(high, full.high - full.low, 1e-6))
    return lead, proportion


def bound(threshold: float, lead: float, proportion: float) -> float:
    """The upper end of a sweep's attacker from which on a cut may leak."""
    return min(threshold - lead, threshold / proportion)


def _suspect(attacks: Sequence[Attack], most: float) -> bool:
    """Whether a cut may leak: nothing is known, an attack failed, or one came up to `most`."""
    return not attacks or any(a.high is None or a.high >= most for a in attacks)


def may_leak(stored: StoredSweep | None, threshold: float) -> str | None:
    """Name of a cut that a stored sweep suspects and that was not attacked in full, or None."""
    if stored is None:
        return None
    most = bound(threshold, stored.lead, stored.proportion)
    return next((s.name for s in stored.cuts if _suspect(s.attacks, most)), None)


def _departures(store: FeatureStore, cuts: Sequence[Cut]) -> dict[int, float]:
    """How far each cut's head is from affine, from one pass over images, others and the middle."""
    if not cuts:
        return {}
    images = store.images.part("train")[:_PAIRS]
    other = np.roll(images, 1, axis=0)
    middle = ((images.astype(np.uint16) + other) // 2).astype(np.uint8)
    found: dict[int, float] = {}
    all_maps = store.maps_of_all(cuts, np.concatenate([images, middle]))
    for cut, maps in zip(cuts, all_maps, strict=True):
        a, half = maps[: len(images)], maps[len(images) :]
        a, half = a.astype(np.float64), half.astype(np.float64)
        b = np.roll(a, 1, axis=0)
        way = float(((a - b) ** 2).sum()) / 4
        found[cut.node] = (float(((half - (a + b) / 2) ** 2).sum()) / max(way, 1e-20)) ** 0.5
    return found
