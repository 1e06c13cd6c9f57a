"""Cuts that were not sampled: cheap attackers on every cut from the answer to the end.

The rule asks for all later cuts, and the search attacks a sample of them. What leaks more than its
neighbours may lie between two sampled cuts, or where several tensors cross. So before an answer
stands, `sketch`, a cheap attacker, goes over every cut of the graph from there on, and least
squares on the public head where that is close enough to affine. How much `sketch` misses is
measured in the same run, on the cuts that were attacked in full: a cut where the panel's largest
lead over it, or largest ratio to it, would carry it to the threshold may leak, and is attacked in
full too; and so is one where its lead on single images would carry them past their limits. Cuts
that were asked for and for which an earlier one stands are held to the same, and a small decoder
goes over them too: what no linear attacker sees must not hide there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..attackers.base import Attacker
from ..attackers.decoder import Decoder
from ..attackers.features import FeatureStore
from ..attackers.newton import Newton
from ..attackers.sketch import Sketch
from ..config import Attack, Lead
from ..config import Sweep as StoredSweep
from ..graph.build import Cut
from .limits import Held
from .plan import Job
from .rule import Verdict
from .search import Outcome, Search

_PAIRS = 8  # images between which a head is held against an affine one


@dataclass(frozen=True)
class Swept:
    """What a sweep found.

    Attributes:
        attackers: ``repr`` of those that ran.
        ahead: How far the panel was ahead of `sketch`, and of the small decoder where that ran, by
            name.
        attacks: By cut, what was reached; every cut that was not attacked in full.
        suspects: Those of them that may leak.
        outcome: What it cost.
    """

    attackers: list[str]
    ahead: dict[str, Lead]
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
        wanted: frozenset[Job],
    ) -> None:
        course, listener, crew = search.course.aside(), search.listener, search.crew
        super().__init__(cuts, [], search.bench, panel, course, search.storage, listener, crew)
        self.wanted = wanted

    def _next_of_all(self, running: Collection[Job]) -> Job | None:
        for i in reversed(range(len(self.cuts))):
            for attacker in self.plan.panel:
                job = (i, attacker)
                if job not in self.wanted or job in self.outcome.evidence or job in running:
                    continue
                return job
        return None


@dataclass(frozen=True, kw_only=True)
class Sweepers:
    """Who goes over cuts.

    Attributes:
        sketch: Over every cut from the answer on.
        decoder: Over those of them that were asked for and were not attacked in full.
    """

    sketch: Sketch
    decoder: Decoder | None = None


def sweep(
    search: Search, cuts: Sequence[Cut], chosen: int, sweepers: Sweepers, workers: int
) -> Swept:
    """Go over `cuts` from the chosen one to the end, and say which of them may leak.

    Args:
        search: A search that has run, with an answer.
        cuts: Every cut of the graph, in execution order.
        chosen: Index of the answer in the search's cuts.
        sweepers: Who goes over them.
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
    panel, wanted = _wanted(search, later, rest, sweepers)
    sweeping = _Sweeping(search, later, panel, wanted)
    outcome = sweeping.run(workers)
    mine = {
        cut.node: {a: outcome.attacks[i, a] for a in panel if (i, a) in outcome.attacks}
        for i, cut in enumerate(later)
    }
    ahead = {
        name: _ahead([(*full, mine[node].get(name)) for node, full in attacked.items()])
        for name in panel
        if name != Newton.name
    }
    return Swept(
        attackers=[repr(a) for a in panel.values()],
        ahead=ahead,
        attacks=[(cut, list(mine[cut.node].values())) for cut in rest],
        suspects=[c for c in rest if _suspect(list(mine[c.node].values()), search.held, ahead)],
        outcome=outcome,
    )


def _wanted(
    search: Search, later: Sequence[Cut], rest: Sequence[Cut], sweepers: Sweepers
) -> tuple[dict[str, Attacker], frozenset[Job]]:
    """The sweep's attackers, and which of them goes over which of the later cuts."""
    panel: dict[str, Attacker] = {sweepers.sketch.name: sweepers.sketch}
    jobs = {(i, sweepers.sketch.name) for i in range(len(later))}
    left = {c.node for c in rest}
    newton = search.panel.get(Newton.name)
    if isinstance(newton, Newton):
        panel[newton.name] = newton
        far = _departures(search.bench.store, rest)
        jobs |= {
            (i, newton.name)
            for i, c in enumerate(later)
            if c.node in left and far[c.node] <= newton.reach
        }
    asked = {c.node for c in search.cuts}
    stood_for = asked & left
    if sweepers.decoder is not None and stood_for:
        panel[sweepers.decoder.name] = sweepers.decoder
        # Also where the panel ran, which says how far that is ahead.
        jobs |= {
            (i, sweepers.decoder.name)
            for i, c in enumerate(later)
            if c.node in stood_for or c.node not in left
        }
    return panel, frozenset(jobs)


Compared = tuple[Verdict, Sequence[Attack], Attack | None]


def _ahead(found: Sequence[Compared]) -> Lead:
    """How far the panel was ahead: its verdict and attacks at a cut, beside the sweep's attack."""
    lead, proportion, largest = 0.0, 1.0, 0.0
    for full, attacks, cheap in found:
        if full.high is None or full.low is None:
            continue
        high = (cheap and cheap.high) or 0.0
        lead = max(lead, full.high - high)
        # Below the width of an interval a ratio is one of noise.
        proportion = max(proportion, full.high / max(high, full.high - full.low, 1e-6))
        most = max((a.largest for a in attacks if a.largest is not None), default=0.0)
        largest = max(largest, most - ((cheap and cheap.largest) or 0.0))
    return Lead(
        lead=lead,
        proportion=proportion,
        over=_images_ahead(found, "over"),
        retrieved=_images_ahead(found, "retrieved"),
        largest=largest,
    )


def _images_ahead(found: Sequence[Compared], what: Literal["over", "retrieved"]) -> int:
    """The same of a count of test images."""
    most = 0
    for _, attacks, cheap in found:
        counts = [n for a in attacks if (n := getattr(a, what)) is not None]
        most = max(most, max(counts, default=0) - ((cheap and getattr(cheap, what)) or 0))
    return most


def bound(threshold: float, lead: float, proportion: float) -> float:
    """The upper end of a sweep's attacker from which on a cut may leak."""
    return min(threshold - lead, threshold / proportion)


def _suspect(attacks: Sequence[Attack], held: Held, ahead: Mapping[str, Lead]) -> bool:
    """Whether a cut may leak: nothing is known, an attack failed, or one came too close."""
    if not attacks:
        return True
    for attack in attacks:
        # What nobody was compared with is held to what `sketch` is.
        by = ahead.get(attack.attacker, ahead[Sketch.name])
        if attack.high is None or attack.high >= bound(held.threshold, by.lead, by.proportion):
            return True
        if held.doubt([_carried(attack, held.images, by)]) is not None:
            return True
    return False


def _carried(attack: Attack, images: int, ahead: Lead) -> Attack:
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
    leads = {Sketch.name: stored.sketch, Decoder.name: stored.decoder}
    ahead = {name: lead for name, lead in leads.items() if lead is not None}
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
