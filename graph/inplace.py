"""In-place operations made out-of-place, so that no captured tensor is overwritten later.

What an operation writes to is measured, not read off its name. Where the overwritten tensor is also
seen through another node (a view, a chunk, the tensor it was sliced from), a graph of values cannot
say what the model does, and the graph is refused.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from ..errors import TraceError
from .costs import NodeCosts
from .naming import Claim

# In-place operation -> the out-of-place one that computes the same values.
OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.imatmul: operator.matmul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
    operator.ilshift: operator.lshift,
    operator.irshift: operator.rshift,
}
_FUNCTIONS: dict[Any, Any] = {
    **OPERATORS,
    torch.relu_: torch.relu,
    torch.sigmoid_: torch.sigmoid,
    torch.tanh_: torch.tanh,
    torch.nn.functional.relu_: torch.nn.functional.relu,
    torch.nn.functional.leaky_relu_: torch.nn.functional.leaky_relu,
    torch.nn.functional.elu_: torch.nn.functional.elu,
    torch.nn.functional.hardtanh_: torch.nn.functional.hardtanh,
}


def make_out_of_place(module: fx.GraphModule, seen: Mapping[str, NodeCosts]) -> bool:
    """Rewrite every node that writes; return whether there was one.

    In-place leaf modules are replaced by shallow copies that share parameters: the traced model and
    its modules are left as they are.

    Args:
        module: The graph module, changed in place.
        seen: Figures of its nodes, from a run of the graph as it is.

    Raises:
        TraceError: A node writes to a tensor that is also read through another one, to a parameter
            or buffer, or has no out-of-place form.
    """
    nodes = list(module.graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    holders: dict[int, list[fx.Node]] = {}
    for node in nodes:
        for storage in seen[node.name].storages:
            holders.setdefault(storage, []).append(node)
    replaced: dict[str, nn.Module] = {}
    changed = False
    for node in nodes:
        wrote = seen[node.name].wrote
        named = _turn(module, node, replaced)
        changed = changed or named or bool(wrote)
        if not wrote:
            continue
        target = node.args[0] if node.args else node.kwargs.get("input")
        if not named or not isinstance(target, fx.Node) or target.name not in wrote:
            raise TraceError(f"`{node.name}` writes to `{wrote[0]}` and has no out-of-place form")
        if target.op == "get_attr":
            raise TraceError(f"`{node.name}` writes to the parameter or buffer `{target.target}`")
        _redirect(node, target, holders, seen, order)
    return changed


def _redirect(
    node: fx.Node,
    target: fx.Node,
    holders: Mapping[int, list[fx.Node]],
    seen: Mapping[str, NodeCosts],
    order: Mapping[fx.Node, int],
) -> None:
    """Whoever read the overwritten tensor afterwards saw the new values."""
    storages = seen[target.name].storages
    sharing = {h: None for storage in storages for h in holders[storage]}
    for holder in sharing:
        if holder is node or order[holder] > order[node]:
            continue
        later = [user for user in holder.users if order[user] > order[node]]
        if not _one_tensor(seen[holder.name].value, seen[target.name].value):
            if later:
                raise TraceError(
                    f"`{node.name}` writes to `{target.name}`, which `{later[0].name}` reads "
                    f"through `{holder.name}`"
                )
            continue
        for user in later:
            user.replace_input_with(holder, node)
        _move_claims(holder, node)


def _one_tensor(a: Any, b: Any) -> bool:
    """Whether two values are the same elements in the same order, in the same memory."""
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return False
    if a is b:
        return True
    return (
        a.untyped_storage()._cdata == b.untyped_storage()._cdata
        and a.storage_offset() == b.storage_offset()
        and a.dtype == b.dtype
        and a.shape == b.shape
        and a.stride() == b.stride()
    )


def _move_claims(holder: fx.Node, node: fx.Node) -> None:
    """A module that returned the tensor after it was overwritten returned the new values."""
    claims: list[Claim] = holder.meta.get("claims", [])
    at = node.meta.get("at", 0)
    holder.meta["claims"] = [c for c in claims if c.at < at]
    node.meta.setdefault("claims", []).extend(c for c in claims if c.at >= at)


def _turn(module: fx.GraphModule, node: fx.Node, replaced: dict[str, nn.Module]) -> bool:
    """Make one node out-of-place if it is of an in-place kind; return whether it was."""
    if node.op == "call_module":
        path = str(node.target)
        leaf = module.get_submodule(path)
        if getattr(leaf, "inplace", False) is not True:
            return path in replaced
        new = copy.copy(leaf)
        new.inplace = False  # type: ignore[assignment]
        set_submodule(module, path, new)
        replaced[path] = new
        return True
    if node.op == "call_function":
        if node.kwargs.get("inplace") is True:
            node.kwargs = {**node.kwargs, "inplace": False}
            return True
        if node.target in _FUNCTIONS:
            node.target = _FUNCTIONS[node.target]
            return True
        return _turn_aten(node)
    if node.op == "call_method":
        method = str(node.target)
        if method.endswith("_") and not method.endswith("__"):
            if not hasattr(torch.Tensor, method[:-1]):
                raise TraceError(f"the in-place method `{method}` has no out-of-place form")
            node.target = method[:-1]
            return True
    return False


def _turn_aten(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return False
    base, overload = schema.name.split("::")[1], schema.overload_name or "default"
    packet = getattr(torch.ops.aten, base.removesuffix("_"), None)
    if base.endswith("_") and packet is not None and hasattr(packet, overload):
        node.target = getattr(packet, overload)
        return True
    raise TraceError(f"the mutating operator `{schema.name}` has no out-of-place form")


def set_submodule(module: nn.Module, path: str, new: nn.Module) -> None:
    """Put `new` at `path`, copying the containers on the way so that the original keeps its own."""
    parent: nn.Module = module
    *way, last = path.split(".")
    for part in way:
        child = copy.copy(getattr(parent, part))
        child._modules = dict(child._modules)
        parent._modules[part] = child
        parent = child
    parent._modules[last] = new
