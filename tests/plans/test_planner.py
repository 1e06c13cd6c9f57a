"""The planner is exact: it equals trying all placements."""

from __future__ import annotations

import itertools
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partopt.errors import PlanError
from partopt.plans.placement import PLACEMENTS, BlockCost, Costs, Plan
from partopt.plans.planner import Rules, cheapest, in_order

# Times whose sums are exact, so that orders can be compared for equality.
times = st.integers(0, 40).map(lambda n: n / 4)
block = st.builds(BlockCost, enclave=times, blinded=st.none() | times, clear=times, factors=times)


@st.composite
def problems(draw, most=6):
    found = draw(st.lists(block, min_size=1, max_size=most))
    crossing = draw(st.lists(times, min_size=len(found) + 1, max_size=len(found) + 1))
    clear_from = draw(st.none() | st.integers(0, len(found) - 1))
    return Costs(tuple(found), tuple(crossing)), clear_from


def every(costs: Costs, clear_from: int | None) -> list[Plan]:
    """All placements that may be, by their definition."""
    plans = map(Plan, itertools.product(PLACEMENTS, repeat=len(costs.blocks)))
    return [
        p
        for p in plans
        if p.hides_the_input(clear_from) and math.isfinite(costs.total(p, sustained=True))
    ]


@settings(deadline=None, max_examples=60)
@given(problems(), st.booleans())
def test_all_plans_in_order_of_cost(problem, sustained):
    costs, clear_from = problem
    found = list(in_order(costs, Rules(clear_from), sustained=sustained))
    totals = [costs.total(p, sustained=sustained) for p in found]
    assert totals == sorted(totals)
    assert len(set(found)) == len(found)
    assert set(found) == set(every(costs, clear_from))


@settings(deadline=None, max_examples=6)
@given(problems(most=12))
def test_the_cheapest_is_the_least_of_all(problem):
    costs, clear_from = problem
    best = cheapest(costs, Rules(clear_from))
    suffixes = len(costs.blocks) - (len(costs.blocks) if clear_from is None else clear_from)
    least = math.inf
    for clear in range(suffixes + 1):
        inside = len(costs.blocks) - clear
        for head in itertools.product(("enclave", "blinded"), repeat=inside):
            least = min(least, costs.total(Plan((*head, *["clear"] * clear))))
    assert costs.total(best) == least
    assert best.hides_the_input(clear_from)


def test_ten_blocks_by_brute_force():
    """Every one of 3^10 placements of one network, those that no rule allows struck out."""
    found = tuple(
        BlockCost(enclave=3 + i % 4, blinded=None if i == 5 else 2 + i % 5, clear=1, factors=i % 3)
        for i in range(10)
    )
    costs = Costs(found, tuple((7 * i) % 5 + 0.5 for i in range(11)))
    best = cheapest(costs, Rules(4), sustained=True)
    least = math.inf
    for placements in itertools.product(PLACEMENTS, repeat=10):
        plan = Plan(placements)
        if plan.hides_the_input(4):
            least = min(least, costs.total(plan, sustained=True))
    assert costs.total(best, sustained=True) == least


def test_placements_that_are_not_allowed_are_not_used():
    costs = Costs((BlockCost(enclave=9, blinded=5, clear=1),) * 3, (1.0,) * 4)
    assert cheapest(costs, Rules(0, ("enclave", "clear"))).placements == ("clear",) * 3
    assert cheapest(costs, Rules(None)).placements == ("blinded",) * 3
    assert cheapest(costs, Rules(2)).placements == ("blinded", "blinded", "clear")
    only = Costs((BlockCost(enclave=9, blinded=None, clear=1),), (1.0, 1.0))
    with pytest.raises(PlanError, match="allow no plan"):
        cheapest(only, Rules(None, ("blinded",)))


def test_crossings_count():
    costs = Costs((BlockCost(enclave=4, blinded=None, clear=1),) * 2, (9.0, 5.0, 0.5))
    assert costs.total(Plan(("enclave", "clear"))) == 4 + 5 + 1 + 0.5
    assert cheapest(costs, Rules(0)).placements == ("enclave", "enclave")
    cheap = Costs(costs.blocks, (9.0, 2.0, 0.5))
    assert cheapest(cheap, Rules(0)).placements == ("enclave", "clear")


def test_a_hundred_blocks_take_milliseconds():
    found = tuple(
        BlockCost(enclave=3 + i % 7, blinded=2 + i % 5, clear=1 + i % 2) for i in range(100)
    )
    costs = Costs(found, tuple(float(i % 5) for i in range(101)))
    begun = time.process_time()
    cheapest(costs, Rules(30))
    assert time.process_time() - begun < 0.5


def test_plans_hide_the_input_or_do_not():
    e, b, c = PLACEMENTS
    assert Plan((e, b, e)).hides_the_input(None)
    assert Plan((e, b, c)).hides_the_input(2)
    assert Plan((e, c, c)).hides_the_input(1)
    assert not Plan((e, c, c)).hides_the_input(2)
    assert not Plan((e, c, e)).hides_the_input(1)
    assert not Plan((e, b, c)).hides_the_input(None)
    assert str(Plan((e, e, b, c, c))) == "enclave 0-1, blinded 2, clear 3-4"


def test_costs_that_are_none_are_refused():
    one = BlockCost(enclave=1, blinded=None, clear=1)
    for found, crossing in (
        ((), (0.0,)),
        ((one,), (0.0,)),
        ((one,), (0.0, math.nan)),
        ((one,), (-1.0, 0.0)),
        ((BlockCost(enclave=math.inf, blinded=1, clear=1),), (0.0, 0.0)),
        ((BlockCost(enclave=1, blinded=math.nan, clear=1),), (0.0, 0.0)),
    ):
        with pytest.raises(PlanError):
            Costs(found, crossing)
    with pytest.raises(PlanError, match="2 placements for 1 blocks"):
        Costs((one,), (0.0, 0.0)).total(Plan(("enclave", "enclave")))
