from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partopt.errors import PlanError, UsageError
from partopt.plans.deadline import least_risk, risk_of
from partopt.plans.placement import PLACEMENTS, BlockCost, Costs, Plan

from .test_planner import problems

E, B, C = PLACEMENTS


def best_of_all(costs: Costs, risks: list[float], deadline: float) -> float | None:
    plans = map(Plan, itertools.product(PLACEMENTS, repeat=len(costs.blocks)))
    return min((risk_of(p, risks) for p in plans if costs.total(p) <= deadline), default=None)


@settings(deadline=None, max_examples=80)
@given(problems(most=5), st.data())
def test_the_least_risk_of_all_placements(problem, data):
    """Times are whole ticks here, so that rounding them changes nothing."""
    costs, _ = problem
    n = len(costs.blocks)
    risks = data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n))
    limit = data.draw(st.integers(0, 200)) / 4
    least = best_of_all(costs, risks, limit)
    if least is None:
        with pytest.raises(PlanError, match="allow more time"):
            least_risk(costs, risks, limit, tick=0.25)
        return
    found = least_risk(costs, risks, limit, tick=0.25)
    assert found.time == costs.total(found.plan) <= limit
    assert found.risk == risk_of(found.plan, risks) == pytest.approx(least, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0.01, 3), min_size=10, max_size=10), st.floats(1, 12))
def test_rounding_never_passes_the_deadline(numbers, limit):
    costs = Costs(
        tuple(BlockCost(enclave=t, blinded=None, clear=t / 3) for t in numbers[:4]),
        tuple(numbers[4:9]),
    )
    risks = [0.1, 0.5, 0.2, 0.9]
    # What a coarse grid may miss is what needs the last tick of every step.
    sure = best_of_all(costs, risks, limit - 9 * 0.05)
    try:
        found = least_risk(costs, risks, limit)
    except PlanError:
        assert sure is None
        return
    assert found.time <= limit
    assert sure is None or found.risk <= sure + 1e-9


def test_checked_blocks_count_as_protected():
    costs = Costs((BlockCost(enclave=10, blinded=2, clear=1),) * 2, (0.1,) * 3)
    found = least_risk(costs, [0.5, 0.5], 4.0)
    assert found.plan.placements == (B, B)
    assert found.risk == 0
    tight = least_risk(costs, [0.5, 0.1], 3.5)
    assert tight.plan.placements == (B, C)
    assert tight.risk == pytest.approx(0.1)


def test_any_subset_may_be_protected():
    """Here, unlike where the input is hidden, a block in the clear may lie in front of others."""
    costs = Costs((BlockCost(enclave=5, blinded=None, clear=1),) * 3, (0.5,) * 4)
    found = least_risk(costs, [0.01, 0.9, 0.01], 9.0)
    assert found.plan.placements == (C, E, C)


def test_a_certain_fault_is_worth_all_others():
    costs = Costs((BlockCost(enclave=5, blinded=None, clear=1),) * 4, (0.0,) * 5)
    found = least_risk(costs, [1.0, 0.9, 0.9, 0.9], 8.0)
    assert found.plan.placements == (E, C, C, C)
    assert found.risk == 1 - 0.1**3 or found.risk == pytest.approx(0.999)


def test_odd_arguments():
    costs = Costs((BlockCost(enclave=5, blinded=None, clear=1),), (0.0, 0.0))
    for risks, limit, tick in (
        ([], 1, 0.1),
        ([1.1], 1, 0.1),
        ([float("nan")], 1, 0.1),
        ([0.5], -1, 0.1),
        ([0.5], 1, 0),
        ([0.5], float("nan"), 0.1),
        ([0.5], 1e9, 0.05),
    ):
        with pytest.raises(UsageError):
            least_risk(costs, risks, limit, tick=tick)
