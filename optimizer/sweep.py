"""Cuts that were not sampled: cheap attackers on every cut from the answer to the end.

The rule asks for all later cuts, and the search attacks a sample of them. What leaks more than its
neighbours may lie between two sampled cuts, or where several tensors cross. So before an answer
stands, a cheap linear attacker goes over every cut of the graph from there on, and least squares on
the public head where that is close enough to affine. How much it misses is measured in the same
run: a cut where it comes as close to the threshold as the whole panel was ever ahead of it may
leak, and is attacked in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from optuna.trial import Trial

from ..attackers.base import Attacker
from ..attackers.features import FeatureStore
from ..attackers.linear import Linear
from ..attackers.newton import Newton
from ..config import Attack
from ..config import Sweep as StoredSweep
from ..graph import Cut
from .plan import Job
from .search import Outcome, Search

_PAIRS = 8  # images between which a head is held against an affine one


@dataclass(frozen=True)
class Swept:
    """What a sweep found.

    Attributes:
        attackers: ``repr`` of those that ran.
        lead: The most that the panel's upper end was above the sweep's on any attacked cut.
        attacks: By cut, what was reached; every cut that was not attacked in full.
        suspects: Those of them that may leak.
        outcome: What it cost.
    """

    attackers: list[str]
    lead: float
    attacks: list[tuple[Cut, list[Attack]]]
    suspects: list[Cut]
    outcome: Outcome = field(repr=False)


class _Sweeping(Search):
    """The sweep's attacks: stored and resumed like others, and never evidence of a safe cut."""

    purpose = "sweep"
    certifies = False

    def keep_pictures(self, trial: Trial, job: Job, attacker: Attacker, key: str) -> None:
        """None: a sweep has many cuts, and nobody looks at them one by one."""

    bent: frozenset[int] = frozenset()  # cuts whose head is too far from affine for newton

    def _next_of_all(self, running: set[Job]) -> Job | None:
        for i in reversed(range(len(self.cuts))):
            for attacker in self.plan.panel:
                if attacker == Newton.name and i in self.bent:
                    continue
                if (i, attacker) not in self.outcome.evidence and (i, attacker) not in running:
                    return i, attacker
        return None


def sweep(search: Search, cuts: Sequence[Cut], chosen: int, linear: Linear, workers: int) -> Swept:
    """Go over `cuts` from the chosen one to the end, and say which of them may leak.

    Args:
        search: A search that has run, with an answer.
        cuts: Every cut of the graph, in execution order.
        chosen: Index of the answer in the search's cuts.
        linear: The sweep's linear attacker.
        workers: Attacks at a time.
    """
    attacked = {
        search.cuts[i].node: i
        for i, verdict in enumerate(search.verdicts())
        if verdict.complete and i >= chosen
    }
    later = [c for c in cuts if c.node >= search.cuts[chosen].node]
    panel: dict[str, Attacker] = {linear.name: linear}
    newton = search.panel.get(Newton.name)
    if isinstance(newton, Newton):
        panel[newton.name] = newton
    sweeping = _Sweeping(
        later, [], search.store, panel, search.floor, threshold=search.threshold,
        scale=search.scale, resolution=search.resolution, storage=search.storage,
        interval=search.interval, seed=search.seed, device=search.device, exhaustive=True,
        on_progress=search.on_progress, on_done=search.on_done,
    )  # fmt: skip
    done = set(attacked)
    if isinstance(newton, Newton):
        far = _departures(search.store, [c for c in later if c.node not in done])
        sweeping.bent = frozenset(
            i for i, c in enumerate(later) if c.node in done or far[c.node] > newton.reach
        )
    outcome = sweeping.run(workers)
    mine = {
        cut.node: [outcome.attacks[i, a] for a in panel if (i, a) in outcome.attacks]
        for i, cut in enumerate(later)
    }
    lead = 0.0
    for node, i in attacked.items():
        full, cheap = search.verdicts()[i].high, mine[node][0].high
        lead = max(lead, 0.0 if full is None else full - (cheap or 0.0))
    rest = [cut for cut in later if cut.node not in done]
    suspects = [cut for cut in rest if _suspect(mine[cut.node], search.threshold - lead)]
    return Swept(
        [repr(a) for a in panel.values()], lead, [(cut, mine[cut.node]) for cut in rest],
        suspects, outcome,
    )  # fmt: skip


def _suspect(attacks: Sequence[Attack], most: float) -> bool:
    """Whether a cut may leak: nothing is known, an attack failed, or one came up to `most`."""
    return not attacks or any(a.high is None or a.high >= most for a in attacks)


def may_leak(stored: StoredSweep | None, threshold: float) -> str | None:
    """Name of a cut that a stored sweep suspects and that was not attacked in full, or None."""
    if stored is None:
        return None
    most = threshold - max(0.0, stored.lead)
    return next((s.name for s in stored.cuts if _suspect(s.attacks, most)), None)


def _departures(store: FeatureStore, cuts: Sequence[Cut]) -> dict[int, float]:
    """How far each cut's head is from affine, from one pass over images, others and the middle."""
    if not cuts:
        return {}
    images = store.images.part("train")[:_PAIRS]
    other = np.roll(images, 1, axis=0)
    middle = ((images.astype(np.uint16) + other) // 2).astype(np.uint8)
    found: dict[int, float] = {}
    for cut, maps in zip(cuts, store.maps_of_all(cuts, np.concatenate([images, middle])),
                         strict=True):  # fmt: skip
        a, half = maps[: len(images)], maps[len(images) :]
        a, half = a.astype(np.float64), half.astype(np.float64)
        b = np.roll(a, 1, axis=0)
        way = float(((a - b) ** 2).sum()) / 4
        found[cut.node] = (float(((half - (a + b) / 2) ** 2).sum()) / max(way, 1e-20)) ** 0.5
    return found
