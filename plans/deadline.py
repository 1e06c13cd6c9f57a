"""Which blocks to protect from faults before a deadline: the least risk that fits into the time.

The question of AegisDNN (Xiang et al., RTSS 2021); the formula is ours, as theirs could not be
had. A block outside is hit by a fault with probability q and then changes the answer with
probability s; blocks are taken as independent, so the risk is 1 - Π(1 - q s) over the blocks that
are not protected. Blocks in the enclave are, and blinded ones are: their answers are checked.

This is about integrity alone. A plan made here may put anything in the clear, so it hides no input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import PlanError, UsageError
from .placement import PLACEMENTS, Costs, Placement, Plan

MAX_TICKS = 100_000


@dataclass(frozen=True)
class Timely:
    """The plan of least risk that was found.

    Attributes:
        plan: Its placements.
        risk: The probability that a fault changes the answer, as modelled; blocks mask each
            other's faults, so compare it with faults put into the whole network (`faults`).
        time: Milliseconds while a request waits.
    """

    plan: Plan
    risk: float
    time: float


def least_risk(
    costs: Costs,
    risks: Sequence[float],
    deadline: float,
    *,
    tick: float = 0.05,
    placements: tuple[Placement, ...] = PLACEMENTS,
) -> Timely:
    """The plan of least risk whose time is at most `deadline`; among equals, the quickest.

    Times are rounded up to whole ticks, block by block, so that a plan never passes the deadline;
    one that needs a tick a block less may be missed.

    Args:
        costs: Of all blocks.
        risks: For each block outside and unchecked, the probability q·s in [0, 1] that a fault hits
            it and changes the answer.
        deadline: Milliseconds.
        tick: The grid of time, in milliseconds.
        placements: What may be used.

    Raises:
        UsageError: Risks, tick or deadline are out of range.
        PlanError: No plan is that fast.
    """
    if len(risks) != len(costs.blocks) or not all(0 <= r <= 1 for r in risks):
        raise UsageError(
            f"`risks` got {len(risks)} for {len(costs.blocks)} blocks; give one in [0, 1] for each"
        )
    if not (tick > 0 and 0 <= deadline <= MAX_TICKS * tick):
        raise UsageError(
            f"`tick` got {tick} for a deadline of {deadline} ms; use a positive one of which at "
            f"most {MAX_TICKS} make up a deadline that is not negative"
        )
    # By side and ticks spent: the least risk so far and how it came about. Only what no other beats
    # in both is kept, so that the table is short.
    states: dict[bool, list[_Way]] = {False: [_Way(0, 0.0, ())], True: []}
    most = _ticks(deadline, tick, down=True)
    for block in range(len(costs.blocks)):
        found: dict[bool, list[_Way]] = {False: [], True: []}
        for outside, ways in states.items():
            for i, placement in enumerate(placements):
                step = costs.step(block, outside, placement, sustained=False)
                there = placement == "clear"
                if math.isinf(step):
                    continue
                risk = _cost(risks[block]) if there else 0.0
                spent = _ticks(step, tick)
                found[there] += [
                    _Way(w.ticks + spent, w.risk + risk, (*w.chosen, i))
                    for w in ways
                    if w.ticks + spent <= most
                ]
        states = {side: _front(ways) for side, ways in found.items()}
    last = [
        _Way(w.ticks + _ticks(costs.end(side), tick), w.risk, w.chosen)
        for side, ways in states.items()
        for w in ways
    ]
    last = [w for w in last if w.ticks <= most]
    if not last:
        raise PlanError(f"`deadline` got {deadline} ms, and no plan is that fast; allow more time")
    best = min(last, key=lambda w: (w.risk, w.ticks, w.chosen))
    plan = Plan(tuple(placements[i] for i in best.chosen))
    return Timely(plan, risk_of(plan, risks), costs.total(plan))


def risk_of(plan: Plan, risks: Sequence[float]) -> float:
    """1 - Π(1 - risk) over the blocks in the clear."""
    safe = 1.0
    for i in plan.blocks("clear"):
        safe *= 1.0 - risks[i]
    return 1.0 - safe


@dataclass(frozen=True)
class _Way:
    ticks: int
    risk: float
    chosen: tuple[int, ...]


def _cost(risk: float) -> float:
    """Sums of this order plans as their risks do; certain faults cost more than all others."""
    return -math.log1p(-risk) if risk < 1 else 1e9


def _ticks(time: float, tick: float, down: bool = False) -> int:
    # A time that is whole but for rounding is taken as whole.
    exact = time / tick
    near = round(exact)
    if abs(exact - near) <= 1e-9 * max(1.0, abs(exact)):
        return near
    return math.floor(exact) if down else math.ceil(exact)


def _front(ways: list[_Way]) -> list[_Way]:
    kept: list[_Way] = []
    for way in sorted(ways, key=lambda w: (w.ticks, w.risk, w.chosen)):
        if not kept or way.risk < kept[-1].risk:
            kept.append(way)
    return kept
