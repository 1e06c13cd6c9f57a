"""The identity of a network: what its graph computes, on which inputs, with which values.

Two networks with one identity give the same feature maps at every cut, so that evidence about one
holds for the other. Every stored result is keyed by it.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ..graph.build import LayerGraph
from ..hashing import hash_json
from .canonical import Canonical

SCHEME = "graph2"  # stands before every graph hash; older ones left settings of layers out


def graph_hash(graph: LayerGraph) -> str:
    """``graph2:`` and 64 hex digits over operators, all of their settings, and shapes.

    Of the weights (what a state dict holds) only names, shapes and dtypes take part: their values
    have a hash of their own. Values that no state dict holds, constants and non-persistent buffers,
    take part.
    """
    return f"{SCHEME}:{hash_json(_told(graph, weights=False))}"


def network_hash(graph: LayerGraph) -> str:
    """64 hex digits over all that `graph_hash` covers and the value of every weight in use."""
    return hash_json([SCHEME, _told(graph, weights=True)])


def of_this_scheme(stored: str) -> bool:
    """Whether a stored graph hash can be compared with those made now."""
    return stored.startswith(f"{SCHEME}:")


def _told(graph: LayerGraph, *, weights: bool) -> Any:
    module = graph.module
    saved = [] if weights else list(module.state_dict(keep_vars=True).values())
    teller = Canonical(bare=saved)
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    nodes = [
        [
            mine.name,
            node.op,
            _target(module, node, teller),
            _argument(node.args, order, teller),
            _argument(dict(node.kwargs), order, teller),
            None if mine.spec is None else [list(mine.spec.shape), mine.spec.dtype],
            teller.value(graph.second_shapes.get(node.name)),
        ]
        for node, mine in zip(module.graph.nodes, graph.nodes, strict=True)
    ]
    inputs = [[list(spec.shape), spec.dtype] for spec in graph.inputs]
    return [inputs, graph.fixed_batch, nodes]


def _target(module: fx.GraphModule, node: fx.Node, teller: Canonical) -> Any:
    if node.op == "call_module":
        return [node.target, teller.value(module.get_submodule(str(node.target)))]
    if node.op == "get_attr":
        value: Any = module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return [node.target, teller.value(value)]
    return teller.value(node.target) if node.op in ("call_function", "call_method") else None


def _argument(value: Any, order: dict[fx.Node, int], teller: Canonical) -> Any:
    """Arguments: nodes by their place in the graph."""
    if isinstance(value, fx.Node):
        return ["node", order[value]]
    if isinstance(value, (tuple, list)):
        return [type(value).__name__, *(_argument(v, order, teller) for v in value)]
    if isinstance(value, dict):
        return ["dict", {str(k): _argument(v, order, teller) for k, v in value.items()}]
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return ["slice", *(_argument(p, order, teller) for p in parts)]
    return teller.value(value)
