"""Sizes in a graph: numbers where they can be, read early, and remade on the other side of a cut.

A size is a value that shapes, dtypes and devices alone decide. One that is the same at two batch
sizes is written into the graph as a number. One that grows with the batch is read where its tensor
is made, so that the tensor need not live on for its shape, and a tail recomputes it from the shape
of a tensor that crosses.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "layout", "is_cuda", "itemsize", "requires_grad"}
_METHODS = {
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "stride",
    "element_size",
    "get_device",
    "is_floating_point",
    "is_complex",
    "is_contiguous",
    "__len__",
}
_FUNCTIONS = {
    len,
    torch.numel,
    torch.is_complex,
    torch.is_floating_point,
    torch.is_tensor,
    torch.ops.aten.sym_size.int,
    torch.ops.aten.sym_numel.default,
    torch.ops.aten.sym_stride.int,
    torch.ops.aten.sym_storage_offset.default,
}
_PLAIN = (bool, int, float, str, torch.dtype, torch.layout, torch.memory_format, type(None))


@dataclass(frozen=True)
class Dim:
    """A number as a tail computes it: ``boundary[position].shape[dim] * multiply // divide``."""

    position: int
    dim: int
    multiply: int
    divide: int


@dataclass(frozen=True)
class DeviceOf:
    """The device of the first tensor that crosses."""


# A recipe: a plain value, a `Dim`, a `DeviceOf`, or a tuple of these.
Recipe = Any


def find_sizes(module: fx.GraphModule, values: Mapping[str, Any]) -> set[str]:
    """Names of the nodes that shapes, dtypes and devices alone decide.

    Args:
        module: The graph module.
        values: Every node's value in a run.
    """
    found: set[str] = set()
    for node in module.graph.nodes:
        if node.op in ("placeholder", "get_attr", "call_module", "output"):
            continue
        if _holds_tensor(values[node.name]):
            continue
        tensors = [m for m in node.all_input_nodes if m.name not in found]
        if not tensors or _reads_shape(node):
            found.add(node.name)
    return found


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_holds_tensor(v) for v in value)
    return isinstance(value, torch.Tensor)


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _METHODS
    if node.target is getattr:
        return node.args[1] in _ATTRIBUTES
    return node.target in _FUNCTIONS


def inline(module: fx.GraphModule, values: Mapping[str, tuple[Any, Any]]) -> None:
    """Write sizes that do not depend on the batch into the graph, and read the others early.

    Args:
        module: The graph module, changed in place.
        values: For each size its value at two batch sizes.
    """
    constant = {n: _plain(a) for n, (a, b) in values.items() if _same(a, b)}

    def swap(arg: fx.Node) -> Any:
        return constant.get(arg.name, arg)

    for node in module.graph.nodes:
        node.args = fx.node.map_arg(node.args, swap)
        node.kwargs = fx.node.map_arg(node.kwargs, swap)
    _hoist(module, values)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, _PLAIN) and type(a) is type(b) and bool(a == b)


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, (tuple, list)) else value


def _hoist(module: fx.GraphModule, sizes: Mapping[str, Any]) -> None:
    nodes = list(module.graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    inputs = [n for n in nodes if n.op == "placeholder"]
    # Where every size goes, and the last one that went there.
    anchors = {n: inputs[-1] if n.op == "placeholder" else n for n in nodes}
    ends = {n: n for n in nodes}
    for node in nodes:
        if node.name in sizes and node.all_input_nodes:
            anchor = max((anchors[n] for n in node.all_input_nodes), key=lambda n: order[n])
            if ends[anchor] is not node.prev:
                ends[anchor].append(node)
            anchors[node], ends[anchor] = anchor, node


Shapes = tuple[tuple[int, ...], tuple[int, ...]]


def recipe(first: Any, second: Any, boundary: Sequence[Shapes]) -> Recipe | None:
    """How a tail makes a size from the tensors that cross; None where it cannot.

    Args:
        first, second: The size at two batch sizes.
        boundary: For each tensor that crosses, its shape at both.
    """
    if isinstance(first, (tuple, list)):
        if not isinstance(second, (tuple, list)) or len(first) != len(second):
            return None
        parts = [recipe(a, b, boundary) for a, b in zip(first, second, strict=True)]
        missing = any(p is None and v is not None for p, v in zip(parts, first, strict=True))
        return None if missing else tuple(parts)
    if isinstance(first, torch.device):
        return DeviceOf()
    if _same(first, second):
        return first
    if type(first) is int and type(second) is int:
        for position, shapes in enumerate(boundary):
            for dim, (one, two) in enumerate(zip(*shapes, strict=True)):
                if one != two and first * two == second * one:
                    return Dim(position, dim, first, one)
    return None


def remake(graph: fx.Graph, how: Recipe, boundary: Sequence[fx.Node]) -> Any:
    """Add the nodes that a recipe needs to `graph`; return the argument that stands for the size.

    Args:
        graph: A tail that is being built.
        how: The recipe.
        boundary: Its inputs.
    """
    if isinstance(how, tuple):
        return tuple(remake(graph, part, boundary) for part in how)
    if isinstance(how, DeviceOf):
        return graph.call_function(getattr, (boundary[0], "device"))
    if not isinstance(how, Dim):
        return how
    size = graph.call_method("size", (boundary[how.position], how.dim))
    if how.multiply == how.divide:
        return size
    product = graph.call_function(operator.mul, (size, how.multiply))
    return graph.call_function(operator.floordiv, (product, how.divide))
