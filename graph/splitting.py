"""Part a layer graph at a cut into two graph modules, or read its boundary tensors in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from ..errors import CutError
from .answers import is_packing
from .build import LayerGraph
from .nodes import Cut, Node
from .sizes import remake

Map = dict[fx.Node, fx.Node]


def split(
    graph: LayerGraph, cut: Cut | str, *, flat: bool = False
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Part `graph` after `cut` into ``(head, tail)``.

    ``head(*inputs)`` returns a tuple of boundary tensors in the order of ``cut.boundary``;
    ``tail(*head(*inputs))`` equals the graph's answer bit for bit on CPU in eval mode, packed as
    the model packs it. With `flat` it is a tuple of the answer's tensors alone, single numbers
    as tensors of shape (1,). Each side holds only the parameters it reads. Neither writes to its
    inputs.

    Raises:
        CutError: The graph cannot be parted there.
    """
    cut = graph.cut(cut) if isinstance(cut, str) else cut
    boundary = [graph.fx_node(i) for i in boundary_nodes(graph, cut)]
    return _head(graph, boundary), _tail(graph, cut, boundary, flat)


def boundary_nodes(graph: LayerGraph, cut: Cut) -> tuple[int, ...]:
    """Indices of the nodes whose outputs cross at `cut`."""
    by_name = {n.name: n.index for n in graph.nodes[: cut.node + 1]}
    try:
        return tuple(by_name[spec.name] for spec in cut.boundary)
    except KeyError as missing:
        raise CutError(
            f"`cut` {cut.name!r} has a boundary tensor {missing} that this graph lacks; "
            "list the cuts of this model again"
        ) from None


def capture(graph: LayerGraph, cuts: Sequence[Cut]) -> fx.GraphModule:
    """A module that returns, in one pass, one tuple of boundary tensors per cut.

    Whatever lies behind the last cut is not computed.
    """
    new, seen = fx.Graph(), Map()
    needed = [[graph.fx_node(i) for i in boundary_nodes(graph, c)] for c in cuts]
    _copy_needed(graph, new, seen, [n for group in needed for n in group])
    new.output(tuple(tuple(seen[n] for n in group) for group in needed))
    return _module(graph, new, "Capture")


def observe(graph: LayerGraph, cuts: Sequence[Cut]) -> fx.GraphModule:
    """The whole model, returning its answer's tensors and then the output of each cut's node."""
    new, seen = fx.Graph(), Map()
    for node in graph.module.graph.nodes:
        if node.op == "output":
            answers = [seen[n] for n in graph.answers]
            nodes = [seen[graph.fx_node(c.node)] for c in cuts]
            new.output((*answers, *nodes))
            break
        seen[node] = new.node_copy(node, lambda n: seen[n])
    return _module(graph, new, "Observed")


def instrument(graph: LayerGraph, cuts: Sequence[Cut], mark: Callable[[], Any]) -> fx.GraphModule:
    """The whole model with `mark` called at the start, after each cut's node and at the end.

    Returns a module that gives ``(answer, (mark_0, ..., mark_end))``: one forward pass that tells
    the cumulative cost at every cut.
    """
    new, seen = fx.Graph(), Map()
    after: dict[str, int] = {graph.nodes[c.node].fx_name: i for i, c in enumerate(cuts)}
    marks: list[Any] = [None] * len(cuts)
    start = None
    for node in graph.module.graph.nodes:
        if node.op == "output":
            end = new.call_function(mark)
            answer = fx.node.map_arg(node.args[0], lambda n: seen[n])
            new.output((answer, (start, *marks, end)))
            break
        if node.op != "placeholder" and start is None:
            start = new.call_function(mark)
        seen[node] = new.node_copy(node, lambda n: seen[n])
        if node.name in after:
            marks[after[node.name]] = new.call_function(mark)
    return _module(graph, new, "Instrumented")


def _module(graph: LayerGraph, new: fx.Graph, name: str) -> fx.GraphModule:
    new.lint()
    module = fx.GraphModule(graph.module, new, name)
    module.eval()
    return module


def _copy_needed(graph: LayerGraph, new: fx.Graph, seen: Map, wanted: Sequence[fx.Node]) -> None:
    """Copy `wanted` and all that they read, and every placeholder, in execution order."""
    keep: set[fx.Node] = set()
    stack = list(wanted)
    while stack:
        node = stack.pop()
        if node not in keep:
            keep.add(node)
            stack.extend(node.all_input_nodes)
    for node in graph.module.graph.nodes:
        if node in keep or node.op == "placeholder":
            seen[node] = new.node_copy(node, lambda n: seen[n])


def _head(graph: LayerGraph, boundary: Sequence[fx.Node]) -> fx.GraphModule:
    new, seen = fx.Graph(), Map()
    _copy_needed(graph, new, seen, boundary)
    new.output(tuple(seen[n] for n in boundary))
    return _module(graph, new, "Head")


def _tail(graph: LayerGraph, cut: Cut, boundary: Sequence[fx.Node], flat: bool) -> fx.GraphModule:
    new = fx.Graph()
    seen: dict[fx.Node, Any] = {node: new.placeholder(node.name) for node in boundary}
    crossing = list(seen.values())
    order = {n: i for i, n in enumerate(graph.module.graph.nodes)}
    indices = tuple(order[n] for n in boundary)

    def fetch(node: fx.Node) -> Any:
        """What stands for the node in the tail; sizes and constants of the head are made again."""
        if node in seen:
            return seen[node]
        here = order[node] > cut.node
        if not here and graph.nodes[order[node]].from_input:
            raise CutError(f"`cut` {cut.name!r} does not carry {node.name!r} to the tail")
        how = None if here else graph.size_recipe(node.name, indices)
        if how is not None:
            seen[node] = remake(new, how, crossing)
        else:
            for needed in node.all_input_nodes:
                fetch(needed)
            seen[node] = new.node_copy(node, lambda n: seen[n])
        return seen[node]

    for node in list(order)[cut.node + 1 :]:
        if node.op == "placeholder":
            raise CutError(f"`cut` {cut.name!r} lies before an input of the model")
        if flat and is_packing(node):
            continue
        if node.op != "output":
            fetch(node)
        elif flat:
            new.output(tuple(_one(new, fetch(n), graph.nodes[order[n]]) for n in graph.answers))
        else:
            new.output(fx.node.map_arg(node.args[0], fetch))
    return _module(graph, new, "Tail")


def _one(new: fx.Graph, value: fx.Node, node: Node) -> fx.Node:
    """A single number as a tensor of one dimension, which a bundle can return."""
    if node.spec is not None and node.spec.shape == ():
        return new.call_method("reshape", (value, 1))
    return value
