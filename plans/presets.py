"""The published strategies as plans, and the cheapest of all that meets what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice

from ..errors import PlanError, UsageError
from .placement import Costs, Placement, Plan
from .planner import Rules, cheapest, in_order

PRESETS = ("paper", "slalom", "origami", "auto")
Drop = Callable[[Plan], float]


@dataclass(frozen=True, kw_only=True)
class Demands:
    """What a plan must meet.

    Attributes:
        safe_from: The first block that may be in the clear (`blocks.safe_from`), or None.
        max_accuracy_drop: The largest loss of top-1, in [0, 1].
        deadline: Milliseconds for one image while it waits, or None.
        sustained: Compare costs with those of factors, which a busy service pays as well.
        tries: How many plans `auto` looks at in order of cost, at most.

    Raises:
        UsageError: A deadline, bound or number out of range.
    """

    safe_from: int | None
    max_accuracy_drop: float = 0.01
    deadline: float | None = None
    sustained: bool = False
    tries: int = 16

    def __post_init__(self) -> None:
        late = self.deadline is not None and not self.deadline > 0
        if late or self.tries < 1 or not 0 <= self.max_accuracy_drop <= 1:
            raise UsageError(
                f"`demands` got a deadline of {self.deadline} ms, an accuracy drop of "
                f"{self.max_accuracy_drop} and {self.tries} tries; use more than 0 ms, 0 to 1, "
                "and 1 or more"
            )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One preset beside the others.

    Attributes:
        preset: One of `PRESETS`.
        plan: None where the preset has no plan here.
        online, sustained: Milliseconds for one image, without and with factors.
        drop: Loss of top-1 as measured; None where it was not.
        lost: Why it was not taken; None for the one that was.
        complete: Whether no cheaper plan was left unlooked-at (``auto``).
    """

    preset: str
    plan: Plan | None = None
    online: float | None = None
    sustained: float | None = None
    drop: float | None = None
    lost: str | None = None
    complete: bool = True


def preset(name: str, costs: Costs, demands: Demands) -> Plan:
    """The plan that a published strategy means for a network.

    ``paper``: enclave, then clear from the cheapest safe place on. ``slalom``: blinded wherever a
    block can be. ``origami``: as slalom, then clear from the cheapest safe place on. ``auto``: the
    cheapest of all, whatever it costs in accuracy.

    Raises:
        UsageError: No such preset.
        PlanError: It wants a safe cut, and there is none.
    """
    if name not in PRESETS:
        raise UsageError(f"`plan` got {name!r}; use {', '.join(PRESETS)}")
    if name == "auto":
        return cheapest(costs, Rules(demands.safe_from), sustained=demands.sustained)
    blind: list[Placement] = [
        "enclave" if name == "paper" or b.blinded is None else "blinded" for b in costs.blocks
    ]
    if name == "slalom":
        return Plan(tuple(blind))
    if demands.safe_from is None:
        raise PlanError(f"`plan` {name!r} wants a safe cut, and none was found; use slalom or auto")
    clear: Placement = "clear"
    ends = [(clear,) * (len(blind) - k) for k in range(demands.safe_from, len(blind))]
    plans = [Plan((*blind[: len(blind) - len(end)], *end)) for end in ends]
    return min(plans, key=lambda p: costs.total(p, sustained=demands.sustained))


def compare(costs: Costs, demands: Demands, drop: Drop, wanted: str = "auto") -> list[Candidate]:
    """Every preset with what it costs, and why it lost; the one taken has ``lost`` None.

    Args:
        costs: Of all blocks.
        demands: What a plan must meet.
        drop: Measures a plan's loss of top-1; asked once for each set of blinded blocks, and not
            at all where nothing is blinded.
        wanted: The preset to take. ``auto`` takes the cheapest of all plans that meets the demands.

    Returns:
        One candidate a preset, in the order of `PRESETS`. None is taken where none meets the
        demands or the wanted one does not.
    """
    if wanted not in PRESETS:
        raise UsageError(f"`plan` got {wanted!r}; use {', '.join(PRESETS)}")
    drop = _remembered(drop)
    found = {name: _candidate(name, costs, demands, drop) for name in PRESETS if name != "auto"}
    found["auto"] = _auto(costs, demands, drop, found.values())
    taken = found[wanted] if found[wanted].lost is None else None
    return [_judged(found[name], taken, wanted, demands) for name in PRESETS]


def _auto(costs: Costs, demands: Demands, drop: Drop, others: Iterable[Candidate]) -> Candidate:
    """The cheapest plan that meets the demands; if too many fail, the cheapest preset that does."""
    first: Candidate | None = None
    order = in_order(costs, Rules(demands.safe_from), sustained=demands.sustained)
    for plan in islice(order, demands.tries):
        candidate = _measured("auto", plan, costs, demands, drop)
        if candidate.lost is None:
            return candidate
        first = first or candidate
        if not demands.sustained and candidate.drop is None:
            return first  # Too slow, and all that follow are slower.
    assert first is not None
    inside = _measured("auto", _inside(costs), costs, demands, drop)
    good = [c for c in (*others, inside) if c.lost is None and c.plan is not None]
    if not good:
        return replace(first, complete=next(order, None) is None)
    best = min(good, key=lambda c: _cost(c, demands))
    return replace(best, preset="auto", complete=False)


def _inside(costs: Costs) -> Plan:
    enclave: Placement = "enclave"
    return Plan((enclave,) * len(costs.blocks))


def _candidate(name: str, costs: Costs, demands: Demands, drop: Drop) -> Candidate:
    try:
        plan = preset(name, costs, demands)
    except PlanError as error:
        return Candidate(preset=name, lost=str(error))
    return _measured(name, plan, costs, demands, drop)


def _measured(name: str, plan: Plan, costs: Costs, demands: Demands, drop: Drop) -> Candidate:
    candidate = Candidate(
        preset=name,
        plan=plan,
        online=costs.total(plan),
        sustained=costs.total(plan, sustained=True),
    )
    assert candidate.online is not None
    if not plan.hides_the_input(demands.safe_from):
        return replace(candidate, lost="puts in the clear what no safe cut lies in front of")
    if demands.deadline is not None and candidate.online > demands.deadline:
        late = candidate.online - demands.deadline
        return replace(candidate, lost=f"{late:.3g} ms behind the deadline")
    lost = drop(plan) if plan.blocks("blinded") else 0.0
    candidate = replace(candidate, drop=lost)
    # Not a number is no accuracy that meets a bound.
    if not lost <= demands.max_accuracy_drop:
        return replace(
            candidate,
            lost=f"loses {lost:.4f} of top-1, more than {demands.max_accuracy_drop:g}",
        )
    return candidate


def _judged(
    candidate: Candidate, taken: Candidate | None, wanted: str, demands: Demands
) -> Candidate:
    if candidate is taken or candidate.lost is not None:
        return candidate
    if taken is None:
        return replace(candidate, lost=f"{wanted} was asked for")
    more = _cost(candidate, demands) - _cost(taken, demands)
    if more > 0:
        return replace(candidate, lost=f"{more:.3g} ms slower than {taken.preset}")
    same = candidate.plan == taken.plan
    reason = f"the same plan as {taken.preset}" if same else f"{wanted} was asked for"
    return replace(candidate, lost=reason)


def _cost(candidate: Candidate, demands: Demands) -> float:
    cost = candidate.sustained if demands.sustained else candidate.online
    assert cost is not None
    return cost


def _remembered(drop: Drop) -> Drop:
    known: dict[tuple[int, ...], float] = {}

    def measured(plan: Plan) -> float:
        blinded = plan.blocks("blinded")
        if blinded not in known:
            known[blinded] = drop(plan)
        return known[blinded]

    return measured
