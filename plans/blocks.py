"""The blocks that a plan places: a network's chain of parts that one tensor alone connects.

A block begins at a convolution or linear layer and takes what follows up to the next, so its
activation and pooling are its own. Where several tensors cross (a residual block, branches that are
concatenated), no block ends: all of it is one unit.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..graph.build import LayerGraph
from ..graph.nodes import Cut, Node


@dataclass(frozen=True)
class Block:
    """One unit of placement.

    Attributes:
        name: The name of its first layer, or of its first node where it has none.
        first, last: Indices of its nodes in the layer graph, both included.
        layers: ``torch.fx`` names of its convolution and linear layers.
        cut: The cut in front of it; None for the first block, in front of which lies the input.
        flops: Of all its nodes, as `Node.flops` counts.
    """

    name: str
    first: int
    last: int
    layers: tuple[str, ...]
    cut: Cut | None
    flops: int


def blocks(graph: LayerGraph) -> list[Block]:
    """The blocks of a traced network, in execution order."""
    found: list[Block] = []
    before: Cut | None = None
    start, begun = 0, before
    pending: list[Node] = []
    cuts = sorted(graph.cuts("clean"), key=lambda c: c.node)
    edges = [(c.node, c) for c in cuts if c.node < len(graph.nodes) - 1]
    previous = 0
    for node, cut in [*edges, (len(graph.nodes) - 1, None)]:
        segment = graph.nodes[previous : node + 1]
        if any(n.is_layer for n in segment) and any(n.is_layer for n in pending):
            found.append(_block(pending, start, begun))
            pending, start, begun = [], previous, before
        pending = [*pending, *segment]
        previous, before = node + 1, cut
    found.append(_block(pending, start, begun))
    return found


def _block(nodes: list[Node], first: int, cut: Cut | None) -> Block:
    layers = [n for n in nodes if n.is_layer]
    return Block(
        name=(layers or nodes)[0].name,
        first=first,
        last=nodes[-1].index,
        layers=tuple(n.fx_name for n in layers),
        cut=cut,
        flops=sum(n.flops for n in nodes),
    )


def safe_from(found: list[Block], cut: Cut) -> int | None:
    """The first block in front of which a safe cut lies, given that every later cut is safe too.

    That is what the rule for a cut asks for, so a block boundary behind `cut` is safe where `cut`
    is. None where no block begins behind it.
    """
    later = (i for i, b in enumerate(found) if b.cut is not None and b.cut.node >= cut.node)
    return next(later, None)
