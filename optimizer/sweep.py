"""Cuts that were not sampled: cheap attackers on every cut from the answer to the end.

The rule asks for all later cuts, and the search attacks a sample of them. What leaks more than its
neighbours may lie between two sampled cuts, or where several tensors cross. So before an answer
stands, `sketch`, a cheap attacker, goes over every cut of the graph from there on, and least
squares on the public head where that is close enough to affine. How much `sketch` misses is
measured in the same run, on the cuts that were attacked in full: a cut where the panel's largest
lead over it, or largest ratio to it, would carry it to the threshold may leak, and is attacked in
full too; and so is one where its lead on single images would carry them past their limits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from optuna.trial import Trial

from ..attackers.base import Attacker
from ..attackers.features import FeatureStore
from ..attackers.newton import Newton
from ..attackers.sketch import Sketch
from ..config import Attack
from ..config import Sweep as StoredSweep
from ..graph.build import Cut
from .attempt import Reached
from .limits import Held
from .plan import Job
from .rule import Verdict
from .search import Outcome, Search

_PAIRS = 8  # images between which a head is held against an affine one


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """The most that the panel was ahead of the sweep's attacker on any cut attacked in full.

    Attributes:
        lead: Of the upper ends.
        proportion: Their largest ratio, at least 1.
        over: Of the test images that reach the threshold on their own; None where nobody counted.
        retrieved: Of the test images that are picked out; None where nobody counted.
        largest: Of the largest score of one image; None where nobody looked.
    """

    lead: float = 0.0
    proportion: float = 1.0
    over: int | None = 0
    retrieved: int | None = 0
    largest: float | None = 0.0


@dataclass(frozen=True)
class Swept:
    """What a sweep found.

    Attributes:
        attackers: ``repr`` of those that ran.
        ahead: How far the panel was ahead of it.
        attacks: By cut, what was reached; every cut that was not attacked in full.
        suspects: Those of them that may leak.
        outcome: What it cost.
    """

    attackers: list[str]
    ahead: Ahead
    attacks: list[tuple[Cut, list[Attack]]]
    suspects: list[Cut]
    outcome: Outcome = field(repr=False)


class _Sweeping(Search):
    """The sweep's attacks: stored and resumed like others, and never evidence of a safe cut."""

    purpose = "sweep"
    certifies = False

    def __init__(
        self,
        search: Search,
        cuts: Sequence[Cut],
        panel: Mapping[str, Attacker],
        bent: frozenset[int],
    ) -> None:
        course = replace(search.course.aside(), attack=True)
        super().__init__(cuts, [], search.bench, panel, course, search.storage, search.listener)
        self.bent = bent  # cuts whose head is too far from affine for newton

    def keep_pictures(self, trial: Trial, reached: Reached, key: str) -> None:
        """None: a sweep has many cuts, and nobody looks at them one by one."""

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
    verdicts, done = search.verdicts(), search.outcome.attacks
    attacked = {
        search.cuts[i].node: (verdict, [a for (j, _), a in done.items() if j == i])
        for i, verdict in enumerate(verdicts)
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
    ahead = _ahead([(*full, mine[node][0]) for node, full in attacked.items()])
    return Swept(
        attackers=[repr(a) for a in panel.values()],
        ahead=ahead,
        attacks=[(cut, mine[cut.node]) for cut in rest],
        suspects=[cut for cut in rest if _suspect(mine[cut.node], search.held, ahead)],
        outcome=outcome,
    )


def _ahead(found: Sequence[tuple[Verdict, Sequence[Attack], Attack]]) -> Ahead:
    """How far the panel was ahead: its verdict and attacks at a cut, beside the sweep's attack."""
    lead, proportion, largest = 0.0, 1.0, 0.0
    for full, attacks, cheap in found:
        if full.high is None or full.low is None:
            continue
        high = cheap.high or 0.0
        lead = max(lead, full.high - high)
        # Below the width of an interval a ratio is one of noise.
        proportion = max(proportion, full.high / max(high, full.high - full.low, 1e-6))
        most = max((a.largest for a in attacks if a.largest is not None), default=0.0)
        largest = max(largest, most - (cheap.largest or 0.0))
    return Ahead(
        lead=lead,
        proportion=proportion,
        over=_images_ahead(found, "over"),
        retrieved=_images_ahead(found, "retrieved"),
        largest=largest,
    )


def _images_ahead(
    found: Sequence[tuple[Verdict, Sequence[Attack], Attack]], what: Literal["over", "retrieved"]
) -> int:
    """The same of a count of test images."""
    most = 0
    for _, attacks, cheap in found:
        counts = [n for a in attacks if (n := getattr(a, what)) is not None]
        most = max(most, max(counts, default=0) - (getattr(cheap, what) or 0))
    return most


def bound(threshold: float, lead: float, proportion: float) -> float:
    """The upper end of a sweep's attacker from which on a cut may leak."""
    return min(threshold - lead, threshold / proportion)


def _suspect(attacks: Sequence[Attack], held: Held, ahead: Ahead) -> bool:
    """Whether a cut may leak: nothing is known, an attack failed, or one came too close."""
    most = bound(held.threshold, ahead.lead, ahead.proportion)
    if not attacks or any(a.high is None or a.high >= most for a in attacks):
        return True
    return held.doubt([_carried(a, held.images, ahead) for a in attacks]) is not None


def _carried(attack: Attack, images: int, ahead: Ahead) -> Attack:
    """A sweep's attack with the panel's lead on single images added; what is not known is all."""

    def carried(count: int | None, more: int | None) -> int:
        return images if count is None or more is None else min(images, count + more)

    known = attack.largest is not None and ahead.largest is not None
    return attack.model_copy(
        update={
            "over": carried(attack.over, ahead.over),
            "retrieved": carried(attack.retrieved, ahead.retrieved),
            "largest": (attack.largest or 0.0) + (ahead.largest or 0.0) if known else 1.0,
        }
    )


def may_leak(stored: StoredSweep | None, held: Held) -> str | None:
    """Name of a cut that a stored sweep suspects and that was not attacked in full, or None."""
    if stored is None:
        return None
    ahead = Ahead(
        lead=stored.lead,
        proportion=stored.proportion,
        over=stored.lead_over,
        retrieved=stored.lead_retrieved,
        largest=stored.lead_largest,
    )
    return next((s.name for s in stored.cuts if _suspect(s.attacks, held, ahead)), None)


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
