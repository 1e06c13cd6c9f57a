from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partopt.errors import UsageError
from partopt.plans.placement import BlockCost, Costs, Plan
from partopt.plans.presets import PRESETS, Demands, compare, preset

from .test_planner import every, problems

E, B, C = "enclave", "blinded", "clear"
# Blinding pays in the wide blocks 0 and 1, not in block 2; block 3 cannot be blinded.
COSTS = Costs(
    (
        BlockCost(enclave=20, blinded=5, clear=1, factors=18),
        BlockCost(enclave=30, blinded=6, clear=2, factors=27),
        BlockCost(enclave=3, blinded=8, clear=1, factors=2),
        BlockCost(enclave=4, blinded=None, clear=2),
        BlockCost(enclave=10, blinded=4, clear=1, factors=9),
    ),
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.5),
)


def lossless(plan: Plan) -> float:
    return 0.0


def by_name(demands, drop=lossless, wanted="auto", costs=COSTS):
    return {c.preset: c for c in compare(costs, demands, drop, wanted)}


def test_presets_are_what_was_published():
    demands = Demands(safe_from=3)
    assert preset("paper", COSTS, demands).placements == (E, E, E, C, C)
    assert preset("slalom", COSTS, demands).placements == (B, B, B, E, B)
    assert preset("origami", COSTS, demands).placements == (B, B, B, C, C)
    assert preset("auto", COSTS, demands).placements == (B, B, E, C, C)
    with pytest.raises(UsageError, match="`plan` got 'nope'"):
        preset("nope", COSTS, demands)


def test_without_a_safe_cut_two_presets_have_no_plan():
    found = by_name(Demands(safe_from=None))
    for name in ("paper", "origami"):
        assert found[name].plan is None
        assert "wants a safe cut" in found[name].lost
    assert found["auto"].plan.placements == (B, B, E, E, B)
    assert found["auto"].lost is None


def test_the_table_says_why_each_lost():
    found = by_name(Demands(safe_from=3))
    assert list(found) == list(PRESETS)
    assert found["auto"].lost is None
    assert found["auto"].online == 5 + 6 + 3 + 1 + 2 + 1 + 0.5
    assert found["auto"].sustained == found["auto"].online + 18 + 27
    assert found["origami"].lost == "5 ms slower than auto"
    assert "slower than auto" in found["paper"].lost
    asked = by_name(Demands(safe_from=3), wanted="paper")
    assert asked["paper"].lost is None
    assert asked["auto"].lost == asked["origami"].lost == "paper was asked for"


def test_where_blinding_does_not_pay_auto_is_the_plain_cut():
    """As on a network of narrow layers."""
    narrow = Costs((BlockCost(enclave=2, blinded=3, clear=1),) * 4, (0.5,) * 5)
    found = by_name(Demands(safe_from=2), costs=narrow)
    assert found["auto"].plan == found["paper"].plan
    assert found["paper"].lost == "the same plan as auto"
    assert found["origami"].lost == "2 ms slower than auto"


def test_factors_count_where_a_service_is_busy():
    busy = by_name(Demands(safe_from=3, sustained=True))
    assert busy["auto"].plan.placements == (E, E, E, C, C), "5 + 18 is more than 20, 6 + 27 than 30"
    assert busy["slalom"].lost.startswith("25.5 ms slower")


def test_a_plan_that_loses_accuracy_is_not_taken():
    def drop(plan):
        return 0.02 if 0 in plan.blocks(B) else 0.001 * len(plan.blocks(B))

    found = by_name(Demands(safe_from=3), drop)
    assert found["slalom"].lost == "loses 0.0200 of top-1, more than 0.01"
    assert found["auto"].plan.placements == (E, B, E, C, C)
    assert found["auto"].drop == 0.001
    assert found["auto"].complete


def test_accuracy_that_is_no_number_meets_no_bound():
    found = by_name(Demands(safe_from=3), lambda plan: math.nan)
    assert found["auto"].plan.placements == (E, E, E, C, C)
    assert "nan" in found["slalom"].lost


def test_accuracy_is_measured_once_for_each_set_of_blinded_blocks():
    asked = []

    def drop(plan):
        asked.append(plan.blocks(B))
        return 1.0

    found = by_name(Demands(safe_from=1, tries=12), drop)
    assert len(set(asked)) == len(asked)
    assert all(asked)
    assert found["auto"].plan.placements == found["paper"].plan.placements
    assert B not in found["auto"].plan.placements


def test_auto_says_where_it_stopped_looking():
    few = by_name(Demands(safe_from=3, tries=1), lambda plan: 1.0)
    assert not few["auto"].complete
    assert few["auto"].lost is None
    assert few["auto"].plan == few["paper"].plan


def test_a_deadline_that_none_meets():
    found = by_name(Demands(safe_from=3, deadline=18.0))
    assert found["auto"].lost == "0.5 ms behind the deadline"
    assert found["auto"].complete
    assert all(c.lost for c in found.values())
    met = by_name(Demands(safe_from=3, deadline=18.5))
    assert met["auto"].lost is None
    assert "behind the deadline" in met["paper"].lost


@settings(deadline=None, max_examples=60)
@given(
    problems(most=4),
    st.integers(0, 2**16),
    st.none() | st.integers(1, 40),
    st.booleans(),
)
def test_auto_is_the_cheapest_that_meets_all_demands(problem, seed, deadline, sustained):
    costs, safe_from = problem

    def drop(plan):
        return 0.02 * (hash((seed, plan.blocks(B))) % 3 == 0)

    demands = Demands(safe_from=safe_from, deadline=deadline, sustained=sustained, tries=10_000)
    good = [
        costs.total(p, sustained=sustained)
        for p in every(costs, safe_from)
        if (not p.blocks(B) or drop(p) <= 0.01) and (deadline is None or costs.total(p) <= deadline)
    ]
    found = by_name(demands, drop, costs=costs)
    assert found["auto"].complete
    if good:
        assert found["auto"].lost is None
        assert costs.total(found["auto"].plan, sustained=sustained) == min(good)
    else:
        assert all(c.lost for c in found.values())
    for candidate in found.values():
        if candidate.lost is None:
            assert candidate.plan.hides_the_input(safe_from)


def test_odd_demands():
    for odd in (
        {"max_accuracy_drop": -0.1},
        {"max_accuracy_drop": math.nan},
        {"deadline": 0.0},
        {"deadline": math.nan},
        {"tries": 0},
    ):
        with pytest.raises(UsageError, match="`demands` got"):
            Demands(safe_from=None, **odd)
    with pytest.raises(UsageError, match="`plan` got 'nope'"):
        compare(COSTS, Demands(safe_from=None), lossless, "nope")
