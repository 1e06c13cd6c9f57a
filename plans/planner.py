"""The cheapest plan, exactly: costs add up along a chain, so a dynamic programme finds it.

The state between two blocks is the side that the tensor lies on. From the costs to go of every
state, a search that always extends the most promising beginning gives the second cheapest plan, the
third, and so on, each only when it is asked for.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import PlanError
from .placement import PLACEMENTS, Costs, Placement, Plan


@dataclass(frozen=True)
class Rules:
    """Which plans are allowed.

    Attributes:
        clear_from: The first block that may run in the clear, with all behind it; None: none may.
        placements: What may be used at all.
    """

    clear_from: int | None
    placements: tuple[Placement, ...] = PLACEMENTS

    def choices(self, block: int, outside: bool) -> tuple[Placement, ...]:
        """Where a block may run, the tensor in front of it lying `outside` or not."""
        if outside:
            return ("clear",)
        clear = self.clear_from is not None and block >= self.clear_from
        return tuple(p for p in self.placements if p != "clear" or clear)


def cheapest(costs: Costs, rules: Rules, *, sustained: bool = False) -> Plan:
    """The cheapest plan; among equals, the one with more in the enclave, earlier blocks first.

    Raises:
        PlanError: No plan is allowed.
    """
    return next(in_order(costs, rules, sustained=sustained))


def in_order(costs: Costs, rules: Rules, *, sustained: bool = False) -> Iterator[Plan]:
    """Every allowed plan, the cheapest first, each once.

    Raises:
        PlanError: No plan is allowed.
    """
    to_go = _to_go(costs, rules, sustained)
    if math.isinf(to_go[0][False]):
        raise PlanError("`placements` allow no plan: a block can run nowhere; allow the enclave")
    # Expected total, order of placements, cost so far, side.
    heap: list[tuple[float, tuple[int, ...], float, bool]] = [(to_go[0][False], (), 0.0, False)]
    while heap:
        _, chosen, spent, outside = heapq.heappop(heap)
        block = len(chosen)
        if block == len(costs.blocks):
            yield Plan(tuple(PLACEMENTS[i] for i in chosen))
            continue
        for placement in rules.choices(block, outside):
            after = spent + costs.step(block, outside, placement, sustained)
            there = placement == "clear"
            expected = after + to_go[block + 1][there]
            if math.isfinite(expected):
                way = (*chosen, PLACEMENTS.index(placement))
                heapq.heappush(heap, (expected, way, after, there))


def _to_go(costs: Costs, rules: Rules, sustained: bool) -> list[dict[bool, float]]:
    """The least cost from in front of each block to the end, by the side that the tensor is on."""
    table = [{False: costs.end(False), True: costs.end(True)}]
    for block in reversed(range(len(costs.blocks))):
        table.append(
            {
                outside: min(
                    (
                        costs.step(block, outside, p, sustained) + table[-1][p == "clear"]
                        for p in rules.choices(block, outside)
                    ),
                    default=math.inf,
                )
                for outside in (False, True)
            }
        )
    return table[::-1]
