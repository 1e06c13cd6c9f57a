"""How often a flipped bit changes the answer: block by block, and for a whole plan.

The first gives the risks that `deadline` adds up as if blocks did not mask each other's faults; the
second puts faults into all blocks in the clear at once and says how far off that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ..errors import UsageError
from .blocks import Block
from .placement import Plan


def sensitivities(
    module: fx.GraphModule, blocks: Sequence[Block], images: torch.Tensor, seed: int = 0
) -> list[float]:
    """For each block, the share of images whose top-1 one flipped bit in its output changes.

    Args:
        module: The traced network, mapping (batch, ...) to scores (batch, classes).
        blocks: Its blocks.
        images: At least one; each gets one fault a block, bit and place drawn evenly.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    everyone = torch.ones(len(images), dtype=torch.bool)
    return [_changed(module, {_output(module, b): everyone}, images, generator) for b in blocks]


def injected_risk(
    module: fx.GraphModule,
    blocks: Sequence[Block],
    plan: Plan,
    images: torch.Tensor,
    probability: float,
    seed: int = 0,
) -> float:
    """The share of images whose top-1 changes if each block in the clear is hit on its own.

    Args:
        module, blocks, images, seed: As in `sensitivities`.
        plan: Which blocks are in the clear.
        probability: That a block is hit for an image, in [0, 1].

    Raises:
        UsageError: A probability out of range.
    """
    if not 0 <= probability <= 1:
        raise UsageError(f"`probability` got {probability}; use a number from 0 to 1")
    generator = torch.Generator().manual_seed(seed)
    hit = {
        _output(module, blocks[i]): torch.rand(len(images), generator=generator) < probability
        for i in plan.blocks("clear")
    }
    return _changed(module, hit, images, generator)


def flipped(values: torch.Tensor, hit: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`values` (batch, ...) float32 with one random bit flipped in every image that is `hit`."""
    rows = values.detach().contiguous().flatten(1).clone().view(torch.int32)
    images = torch.arange(len(rows))[hit]
    where = torch.randint(0, rows.shape[1], (len(images),), generator=generator)
    bits = torch.randint(0, 32, (len(images),), generator=generator)
    rows[images, where] ^= (1 << bits).to(torch.int32)
    return rows.view(torch.float32).reshape(values.shape)


class _Hit(fx.Interpreter):
    def __init__(
        self, module: fx.GraphModule, hit: dict[str, torch.Tensor], generator: torch.Generator
    ) -> None:
        super().__init__(module)
        self._hit = hit
        self._generator = generator

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        return flipped(value, self._hit[n.name], self._generator) if n.name in self._hit else value


def _output(module: fx.GraphModule, block: Block) -> str:
    """The last node of a block that computes something: not the graph's output."""
    nodes = list(module.graph.nodes)[block.first : block.last + 1]
    return str([n for n in nodes if n.op != "output"][-1].name)


def _changed(
    module: fx.GraphModule,
    hit: dict[str, torch.Tensor],
    images: torch.Tensor,
    generator: torch.Generator,
) -> float:
    with torch.no_grad():
        truth = _classes(module(images))
        found = _classes(_Hit(module, hit, generator).run(images))
    return float((found != truth).double().mean())


def _classes(scores: torch.Tensor) -> torch.Tensor:
    """Top-1; -1 where a score is not a number, which is an answer that nobody asked for."""
    return torch.where(scores.isnan().any(1), -1, scores.argmax(1))
