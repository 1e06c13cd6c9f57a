"""Where a block may run, what that costs, and a plan: one placement for each block of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import PlanError

Placement = Literal["enclave", "blinded", "clear"]
PLACEMENTS: tuple[Placement, ...] = ("enclave", "blinded", "clear")


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """What one block costs at each place, in milliseconds for one image.

    Attributes:
        enclave: All of it inside.
        blinded: While a request waits: what stays inside, masks, checks, the way out and back and
            the sums outside. None where the block has no layer that can be blinded.
        factors: What its masks cost ahead of a request.
        clear: All of it outside in the open.
        inside: Of `blinded`, what the enclave works itself, without crossings and outside sums.
    """

    enclave: float
    blinded: float | None
    clear: float
    factors: float = 0.0
    inside: float = 0.0

    def at(self, placement: Placement, sustained: bool = False) -> float:
        """The cost at a place, infinite where the block cannot run there."""
        if placement == "blinded":
            if self.blinded is None:
                return math.inf
            return self.blinded + (self.factors if sustained else 0.0)
        return self.enclave if placement == "enclave" else self.clear


@dataclass(frozen=True)
class Costs:
    """The costs of all blocks, and of crossing between them.

    Attributes:
        blocks: In execution order.
        crossing: One more than blocks: milliseconds to carry, in the clear, what enters each block
            over the enclave's edge; the last is the way of the answer back into the enclave.

    Raises:
        PlanError: No blocks, as many crossings as blocks, or a cost that is no finite time.
    """

    blocks: tuple[BlockCost, ...]
    crossing: tuple[float, ...]

    def __post_init__(self) -> None:
        times = [*self.crossing]
        for b in self.blocks:
            times += [
                b.enclave,
                b.clear,
                b.factors,
                b.inside,
                0.0 if b.blinded is None else b.blinded,
            ]
        if not self.blocks or len(self.crossing) != len(self.blocks) + 1:
            raise PlanError(
                f"`crossing` got {len(self.crossing)} times for {len(self.blocks)} blocks; "
                "give one before each of at least one block, and one for the answer"
            )
        if not all(math.isfinite(t) and t >= 0 for t in times):
            raise PlanError("`costs` holds a time that is negative or not finite; measure again")

    def step(self, block: int, outside: bool, placement: Placement, sustained: bool) -> float:
        """The cost of a block at a place, with the way there where the block before was elsewhere.

        The tensor in front of the block lies inside unless `outside`. Blinded blocks begin and end
        inside.
        """
        cost = self.blocks[block].at(placement, sustained)
        return cost + (self.crossing[block] if outside != (placement == "clear") else 0.0)

    def end(self, outside: bool) -> float:
        """The cost of the answer's way back."""
        return self.crossing[-1] if outside else 0.0

    def total(self, plan: Plan, *, sustained: bool = False) -> float:
        """Milliseconds for one image: while a request waits, or with factors (`sustained`)."""
        if len(plan.placements) != len(self.blocks):
            raise PlanError(
                f"`plan` got {len(plan.placements)} placements for {len(self.blocks)} blocks"
            )
        total, outside = 0.0, False
        for i, placement in enumerate(plan.placements):
            total += self.step(i, outside, placement, sustained)
            outside = placement == "clear"
        return total + self.end(outside)


@dataclass(frozen=True)
class Plan:
    """A placement for each block, in execution order."""

    placements: tuple[Placement, ...]

    def blocks(self, placement: Placement) -> tuple[int, ...]:
        """The indices of the blocks at a place."""
        return tuple(i for i, p in enumerate(self.placements) if p == placement)

    @property
    def clear_from(self) -> int | None:
        """The first block in the clear, or None."""
        clear = self.blocks("clear")
        return clear[0] if clear else None

    def hides_the_input(self, safe_from: int | None) -> bool:
        """Whether all that is in the clear is a suffix that begins at or behind a safe cut.

        Args:
            safe_from: The first block that a safe cut lies in front of, with every later one
                (`Blocks.safe_from`); None where there is none.
        """
        first = self.clear_from
        if first is None:
            return True
        suffix = all(p == "clear" for p in self.placements[first:])
        return suffix and safe_from is not None and first >= safe_from

    def __str__(self) -> str:
        """Runs of one placement: ``enclave 0-3, blinded 4, clear 5-9``."""
        parts, start = [], 0
        for i in range(1, len(self.placements) + 1):
            if i == len(self.placements) or self.placements[i] != self.placements[start]:
                span = f"{start}" if i == start + 1 else f"{start}-{i - 1}"
                parts.append(f"{self.placements[start]} {span}")
                start = i
        return ", ".join(parts)
