"""From an ``nn.Module`` to a clean ``torch.fx`` graph: symbolic tracing, export, clean-up.

A graph that leaves here is in eval mode, has no in-place activation, no assertion, no dead code,
and has every size that does not depend on the batch written in as a number.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import operator
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ._torchvision import NodePathTracer
from .errors import TraceError

_ASSERTS: set[Any] = {torch._assert, torch.ops.aten._assert_async.msg}

# In-place operation -> the out-of-place one that computes the same values.
_OUT_OF_PLACE_FUNCTIONS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    torch.relu_: torch.relu,
    torch.sigmoid_: torch.sigmoid,
    torch.tanh_: torch.tanh,
    torch.nn.functional.relu_: torch.nn.functional.relu,
    torch.nn.functional.leaky_relu_: torch.nn.functional.leaky_relu,
    torch.nn.functional.elu_: torch.nn.functional.elu,
    torch.nn.functional.hardtanh_: torch.nn.functional.hardtanh,
}


class _Tracer(NodePathTracer):
    """torchvision's path tracer that also remembers the innermost module that failed."""

    failed_module: str | None = None

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace one module; on failure note its path before re-raising."""
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed_module is None:
                self.failed_module = self.path_of_module(m)
            raise


def symbolic(
    model: nn.Module,
    leaf_modules: Sequence[type[nn.Module]] = (),
    concrete_args: Mapping[str, Any] | None = None,
) -> tuple[fx.GraphModule, dict[str, str]]:
    """Trace with ``torch.fx``; return the graph module and ``fx name -> qualified name``.

    Raises:
        TraceError: With the module path and the source line that stopped the tracer.
    """
    tracer = _Tracer(leaf_modules=list(leaf_modules))
    try:
        args = dict(concrete_args) if concrete_args else None
        graph = tracer.trace(model, concrete_args=args)
    except Exception as error:
        raise TraceError(_where(error, tracer.failed_module)) from error
    names = {node.name: name for node, name in tracer.node_to_qualname.items()}
    module = fx.GraphModule(tracer.root, graph, type(model).__name__)
    _forget_unsaved(module, set(tracer.root.state_dict()))
    return module, names


def _forget_unsaved(module: fx.GraphModule, saved: set[str]) -> None:
    """What the model's state dict lacks shall not be in the graph module's, which saves it all."""
    for node in module.graph.nodes:
        if node.op == "get_attr" and str(node.target) not in saved:
            place, _, name = str(node.target).rpartition(".")
            parent = module.get_submodule(place)
            if name in parent._buffers:
                parent._non_persistent_buffers_set.add(name)


def exported(
    model: nn.Module, example: tuple[torch.Tensor, ...]
) -> tuple[fx.GraphModule, dict[str, str]]:
    """Trace with ``torch.export``, with a dynamic batch dimension where the model allows one.

    Raises:
        TraceError: With the module path and the source line that stopped the export.
    """
    error: Exception
    for dynamic in (True, False):
        try:
            with _quiet():
                return from_program(_export(model, example, dynamic))
        except Exception as caught:
            error = caught
    raise TraceError(_where(error, None)) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs whole graphs when it fails; the error we raise says what stopped it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _export(
    model: nn.Module, example: tuple[torch.Tensor, ...], dynamic: bool
) -> torch.export.ExportedProgram:
    if not dynamic:
        return torch.export.export(model, example, strict=False)
    # A batch of one would be specialised to the constant 1.
    batch = tuple(torch.cat([t, t]) if t.shape[0] == 1 else t for t in example)
    shapes = tuple({0: torch.export.Dim.AUTO} for _ in batch)
    return torch.export.export(model, batch, dynamic_shapes=shapes, strict=False)


def from_program(
    program: torch.export.ExportedProgram,
) -> tuple[fx.GraphModule, dict[str, str]]:
    """Turn an exported program into a plain graph module with qualified names.

    Raises:
        TraceError: The program was exported in training mode.
    """
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    for node in module.graph.nodes:
        op = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        if (op == "dropout" and node.args[2]) or (op == "batch_norm" and node.args[5]):
            raise TraceError(
                f"`model` was exported in training mode ({node.name}); "
                "call model.eval() before torch.export.export"
            )
    _unwrap_pytree(module)
    return module, _export_names(module)


def _unwrap_pytree(module: fx.GraphModule) -> None:
    """Replace export's input/output codegen by explicit nodes, so that the graph can be cut."""
    codegen = module.graph._codegen
    info = getattr(codegen, "pytree_info", None)
    module.graph.set_codegen(fx.graph.CodeGen())
    if info is not None and info.out_spec is not None:
        output = next(n for n in module.graph.nodes if n.op == "output")
        results = list(output.args[0])
        if info.out_spec.is_leaf():
            output.args = (results[0],)
        else:
            with module.graph.inserting_before(output):
                packed = module.graph.call_function(pytree.tree_unflatten, (results, info.out_spec))
            output.args = (packed,)
    module.recompile()


def _export_names(module: fx.GraphModule) -> dict[str, str]:
    """Qualified names for exported nodes: the last node of a leaf module takes its path."""
    path_of: dict[str, str] = {}
    last: dict[str, str] = {}
    for node in module.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if node.op != "call_function" or not stack:
            continue
        path, kind = list(stack.values())[-1]
        path = re.sub(r"^L\['self'\]\.?", "", path)
        path_of[node.name] = path
        if "torch.nn.modules" in str(kind) and path:
            last[path] = node.name
    names: dict[str, str] = {}
    used: dict[str, int] = {}
    for node in module.graph.nodes:
        path = path_of.get(node.name, "")
        if path and last.get(path) == node.name:
            name = path
        else:
            stem = re.sub(r"_[0-9]+$", "", node.name)
            name = f"{path}.{stem}" if path else stem
        seen = used.get(name, 0)
        used[name] = seen + 1
        names[node.name] = f"{name}_{seen}" if seen else name
    return names


def _where(error: BaseException, module: str | None) -> str:
    """Say in one phrase which module and source line stopped a tracer, and with what."""
    place = ""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if "/torch/" not in f.filename and "tracing.py" not in f.filename]
    outside = [f for f in outside if "feature_extraction.py" not in f.filename]
    if outside:
        frame = outside[-1]
        place = f" at {frame.filename}:{frame.lineno} (`{(frame.line or '').strip()}`)"
    inside = f" in module `{module}`" if module else ""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"stopped{inside}{place}: {reason}"


def clean(module: fx.GraphModule) -> None:
    """Drop assertions and dead code and make every activation out-of-place, in the graph only.

    The traced model and its modules are left as they are: in-place leaf modules are replaced by
    shallow copies that share parameters.
    """
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in _ASSERTS:
            module.graph.erase_node(node)
    _make_out_of_place(module)
    _erase_dead(module)
    module.graph.lint()
    module.recompile()


def _erase_dead(module: fx.GraphModule) -> None:
    for node in reversed(list(module.graph.nodes)):
        if node.op not in ("placeholder", "output") and not node.users:
            module.graph.erase_node(node)


def _make_out_of_place(module: fx.GraphModule) -> None:
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    replaced: dict[str, nn.Module] = {}
    for node in list(module.graph.nodes):
        if not _turn_out_of_place(module, node, replaced):
            continue
        target = node.args[0] if node.args else node.kwargs.get("input")
        if isinstance(target, fx.Node):
            # Whoever read the overwritten tensor afterwards saw the new values.
            for user in list(target.users):
                if order[user] > order[node]:
                    user.replace_input_with(target, node)


def _turn_out_of_place(
    module: fx.GraphModule, node: fx.Node, replaced: dict[str, nn.Module]
) -> bool:
    """Rewrite one node; return whether it was in-place."""
    if node.op == "call_module":
        path = str(node.target)
        leaf = module.get_submodule(path)
        if getattr(leaf, "inplace", False) is not True:
            return path in replaced
        new = copy.copy(leaf)
        new.inplace = False  # type: ignore[assignment]
        _set_submodule(module, path, new)
        replaced[path] = new
        return not isinstance(leaf, nn.modules.dropout._DropoutNd)
    if node.op == "call_function":
        if node.kwargs.get("inplace") is True:
            node.kwargs = {**node.kwargs, "inplace": False}
            return node.target is not torch.nn.functional.dropout
        if node.target in _OUT_OF_PLACE_FUNCTIONS:
            node.target = _OUT_OF_PLACE_FUNCTIONS[node.target]
            return True
        return _aten_out_of_place(node)
    if node.op == "call_method":
        method = str(node.target)
        if method.endswith("_") and not method.endswith("__"):
            if not hasattr(torch.Tensor, method[:-1]):
                raise TraceError(f"the in-place method `{method}` has no out-of-place form")
            node.target = method[:-1]
            return True
    return False


def _aten_out_of_place(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return False
    base, overload = schema.name.split("::")[1], schema.overload_name or "default"
    packet = getattr(torch.ops.aten, base.removesuffix("_"), None)
    if base.endswith("_") and packet is not None and hasattr(packet, overload):
        node.target = getattr(packet, overload)
        return True
    raise TraceError(f"the mutating operator `{schema.name}` has no out-of-place form")


def _set_submodule(module: nn.Module, path: str, new: nn.Module) -> None:
    """Put `new` at `path`, copying the containers on the way so that the original keeps its own."""
    parent: nn.Module = module
    *way, last = path.split(".")
    for part in way:
        child = copy.copy(getattr(parent, part))
        child._modules = dict(child._modules)
        parent._modules[part] = child
        parent = child
    parent._modules[last] = new


def inline_sizes(module: fx.GraphModule, values: Mapping[str, tuple[Any, Any]]) -> None:
    """Write sizes that do not depend on the batch into the graph as numbers.

    Args:
        module: The graph module, changed in place.
        values: For each node without a tensor output, its value at two batch sizes.
    """
    constant = {n: v[0] for n, v in values.items() if _same_number(*v)}
    for node in module.graph.nodes:

        def swap(arg: fx.Node) -> Any:
            return constant.get(arg.name, arg)

        node.args = fx.node.map_arg(node.args, swap)
        node.kwargs = fx.node.map_arg(node.kwargs, swap)
    _erase_dead(module)
    module.graph.lint()
    module.recompile()


def _same_number(a: Any, b: Any) -> bool:
    return isinstance(a, (int, float, bool)) and type(a) is type(b) and a == b
