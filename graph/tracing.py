"""From an ``nn.Module`` to a ``torch.fx`` graph: symbolic tracing, export, qualified names.

The model is called as its users call it: hooks on it run, and arguments of ``forward`` that nobody
gives keep their defaults. What a graph is worth is not decided here but by `fidelity`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import logging
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ..errors import TraceError, UsageError, first_line, nearest
from .answers import plain
from .inplace import OPERATORS
from .naming import Call, Claim, Names
from .torchvision_cpu import NodePathTracer

_ASSERTS: set[Any] = {torch._assert, torch.ops.aten._assert_async.msg}


@dataclass(frozen=True)
class Request:
    """How a model is to be traced.

    Attributes:
        leaf_modules: Module classes to keep as one node.
        concrete_args: Arguments of ``forward`` and the values to call it with.
    """

    leaf_modules: tuple[type[nn.Module], ...] = ()
    concrete_args: Mapping[str, Any] = field(default_factory=dict)

    def bind(self, model: nn.Module, inputs: int) -> tuple[str, ...]:
        """Names of the first `inputs` arguments of the model's ``forward``.

        Raises:
            UsageError: `concrete_args` names an input, or no argument.
        """
        try:
            parameters = list(inspect.signature(model.forward).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [p.name for p in parameters if p.kind in plain][:inputs]
        names += [f"input_{i}" for i in range(len(names), inputs)]
        known = [p.name for p in parameters if p.name not in names and "VAR" not in p.kind.name]
        for name in self.concrete_args:
            if name in names:
                raise UsageError(f"`concrete_args` got {name!r}, which is the input; leave it out")
            if name not in known and not any("VAR_KEYWORD" in p.kind.name for p in parameters):
                raise UsageError(
                    f"`concrete_args` got {name!r}, which forward does not take"
                    f"{nearest(name, known)}; use one of {', '.join(known) or 'none'}"
                )
        return tuple(names)


@dataclass(frozen=True)
class Traced:
    """A graph as it was traced, the qualified names of its nodes, and which way."""

    module: fx.GraphModule
    names: dict[str, str]
    source: str


def module_paths(model: nn.Module) -> dict[str, str]:
    """Every path of every submodule, and the first path of the same module."""
    first: dict[int, str] = {}
    return {
        path: first.setdefault(id(module), path)
        for path, module in model.named_modules(remove_duplicate=False)
        if path
    }


class _Proxy(fx.Proxy):
    """A proxy on which in-place arithmetic (``x += y``) is seen as what it is.

    ``fx.Proxy`` lets Python fall back on ``x = x + y``, which leaves other names of x as they were.
    """


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    plain = OPERATORS[function].__name__

    def method(self: _Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {}, name=plain)

    return method


for _function in OPERATORS:
    setattr(_Proxy, f"__{_function.__name__}__", _in_place(_function))


class _Stand(nn.Module):
    """Stands in for a model while it is traced: has its modules and tensors, and calls it."""

    def __init__(self, call: Callable[..., Any], model: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(model.__dict__)
        self.__dict__["_partopt_call"] = call

    def forward(self, *inputs: Any) -> Any:
        return self.__dict__["_partopt_call"](*inputs)


class _Tracer(NodePathTracer):
    """torchvision's path tracer, with names of our own, the model's hooks, and claims.

    A claim on a node's ``meta`` says whose output it is; ``meta["calls"]`` says within which calls
    of which modules it was made, outermost first.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[str], request: Request) -> None:
        super().__init__(leaf_modules=list(request.leaf_modules))
        self.failed_module: str | None = None
        self._model = model
        self._inputs = inputs
        self._first = module_paths(model)
        self._names = Names(self._first)
        self._asked: dict[int, list[str]] = {}
        self._called_as: dict[int, str] = {}
        self._age = 0
        self._called: Counter[str] = Counter()
        self._within: list[Call] = []

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """The inputs alone: what else ``forward`` takes has its default or a given value."""
        placeholders = [self.create_proxy("placeholder", n, (), {}) for n in self._inputs]
        return root_fn, [self.root, *placeholders]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        """Note by which of its names a module is asked for; the innermost call is made first."""
        if isinstance(attr_val, nn.Module):
            self._asked.setdefault(id(attr_val), []).append(attr)
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def path_of_module(self, mod: nn.Module) -> str:
        """The path that the model's code calls the module by, where it has several."""
        first = super().path_of_module(mod)
        name = self._called_as.get(id(mod))
        paths = [p for p, f in self._first.items() if f == first and p.split(".")[-1] == name]
        return paths[0] if len(paths) == 1 else first

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node: fx.Node = super().create_node(*args, **kwargs)
        self._age += 1
        node.meta["at"] = self._age
        node.meta["calls"] = tuple(self._within)
        return node

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace one module; on failure note its path before re-raising."""
        if m is self._model:
            return forward(*args, **kwargs)
        asked = self._asked.get(id(m))
        self._called_as[id(m)] = asked.pop() if asked else ""
        path = self.path_of_module(m)
        within = len(self._within)
        for known_as in dict.fromkeys((self._first[path], path)):
            self._within.append((known_as, self._called[known_as]))
            self._called[known_as] += 1
        call = self._within[within]
        try:
            value = super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed_module is None:
                self.failed_module = path
            raise
        finally:
            del self._within[within:]
        if isinstance(value, fx.Proxy):
            value.node.meta.setdefault("claims", []).append(Claim(*call, self._age))
        return value

    def _get_node_qualname(self, module_qualname: str, node: fx.Node) -> str:
        if node.op == "call_module":
            return self._names.of_module(module_qualname)
        return self._names.of_operation(module_qualname, str(node))


def symbolic(model: nn.Module, inputs: int, request: Request) -> Traced:
    """Trace with ``torch.fx``.

    Raises:
        TraceError: With the module path and the source line that stopped the tracer.
    """
    call = functools.partial(model, **request.concrete_args)
    stand, tracer = _Stand(call, model), _Tracer(model, request.bind(model, inputs), request)
    try:
        graph = tracer.trace(stand)
        names = {node.name: name for node, name in tracer.node_to_qualname.items()}
        module = fx.GraphModule(tracer.root, graph, type(model).__name__)
    except Exception as error:
        raise TraceError(_where(error, tracer.failed_module)) from error
    _forget_unsaved(module, set(tracer.root.state_dict()))
    return Traced(module, names, "torch.fx")


def _forget_unsaved(module: fx.GraphModule, saved: set[str]) -> None:
    """What the model's state dict lacks shall not be in the graph module's, which saves it all."""
    for node in module.graph.nodes:
        if node.op == "get_attr" and str(node.target) not in saved:
            place, _, name = str(node.target).rpartition(".")
            parent = module.get_submodule(place)
            if name in parent._buffers:
                parent._non_persistent_buffers_set.add(name)


@dataclass(frozen=True)
class Exported:
    """A model as `torch.export` wrote it down.

    Attributes:
        program: The program.
        paths: Of all modules of the model, where they are known.
        prefix: What the program puts before every path.
    """

    program: torch.export.ExportedProgram
    paths: tuple[str, ...] = ()
    prefix: str = ""


def exported(model: nn.Module, example: tuple[torch.Tensor, ...], request: Request) -> Exported:
    """Export with ``torch.export``, with a dynamic batch dimension where the model allows one.

    Raises:
        TraceError: With the module path and the source line that stopped the export.
    """
    error: Exception
    whole, prefix = model, ""
    if request.concrete_args:
        whole, prefix = _Given(model, request.concrete_args), "model."
    for dynamic in (True, False):
        try:
            with _quiet(), torch.no_grad():
                program = _export(whole, example, dynamic)
            return Exported(program, tuple(module_paths(model)), prefix)
        except Exception as caught:
            error = caught
    raise TraceError(_where(error, None)) from error


class _Given(nn.Module):
    """A model with some arguments given."""

    def __init__(self, model: nn.Module, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self._arguments = dict(arguments)
        self.training = model.training

    def forward(self, *inputs: Any) -> Any:
        return self.model(*inputs, **self._arguments)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs, warns and prints whole graphs; our error says what stopped it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        sink = io.StringIO()
        with (
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
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
    auto = {0: torch.export.Dim.AUTO}
    # One entry an argument; a tuple for `*inputs`.
    shapes: Any = tuple(dict(auto) for _ in batch)
    if isinstance(model, _Given):
        shapes = (shapes,)
    return torch.export.export(model, batch, dynamic_shapes=shapes, strict=False)


def from_program(made: Exported, functional: bool = False) -> Traced:
    """Turn an exported program into a plain graph module with qualified names.

    Args:
        made: The program.
        functional: Let torch take out whatever writes, views and slices included: tensors that
            are written to become values of their own, composite operators may be taken apart.

    Raises:
        TraceError: The program was exported in training mode.
    """
    program = made.program
    for node in program.graph.nodes:
        op = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        if (op == "dropout" and node.args[2]) or (op == "batch_norm" and node.args[5]):
            raise TraceError(
                f"`model` was exported in training mode ({node.name}); "
                "call model.eval() before torch.export.export"
            )
    if functional:
        with _quiet():
            program = program.run_decompositions({})
    with _quiet():
        module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    for node in reversed(list(module.graph.nodes)):
        # What is written back to inputs and buffers once the answer is known.
        written_back = node.target is torch.ops.aten.copy_.default and not node.users
        if written_back and node.args[0].op in ("placeholder", "get_attr"):
            module.graph.erase_node(node)
    _unwrap_pytree(module)
    names = _export_names(module, made.paths, made.prefix)
    return Traced(module, names, "torch.export")


def _unwrap_pytree(module: fx.GraphModule) -> None:
    """Replace export's codegen by a plain graph that can be cut, answers in plain containers.

    A specification of containers (a Hugging Face model's output class) cannot be an argument of a
    node: it has no form as source code.
    """
    codegen = module.graph._codegen
    info = getattr(codegen, "pytree_info", None)
    module.graph.set_codegen(fx.graph.CodeGen())
    if info is not None and info.out_spec is not None:
        output = next(n for n in module.graph.nodes if n.op == "output")
        output.args = (plain(pytree.tree_unflatten(list(output.args[0]), info.out_spec)),)
    module.recompile()


def _export_names(module: fx.GraphModule, paths: Iterable[str], prefix: str) -> dict[str, str]:
    """Qualified names: the last node of a call of a module of torch.nn takes the module's path."""
    last: dict[Call, fx.Node] = {}
    for age, node in enumerate(module.graph.nodes):
        calls = _calls(node, prefix) if node.op == "call_function" else []
        node.meta["at"] = age
        node.meta["calls"] = tuple(call for call, _ in calls)
        if calls and "torch.nn.modules" in calls[-1][1]:
            last[calls[-1][0]] = node
    named = {node: call for call, node in last.items()}
    handed = Names({*paths, *(path for path, _ in last)})
    names: dict[str, str] = {}
    for node in module.graph.nodes:
        if node in named:
            path, number = named[node]
            names[node.name] = handed.of_module(path)
            node.meta["claims"] = [Claim(path, number, node.meta["at"])]
        else:
            within = node.meta["calls"]
            names[node.name] = handed.of_operation(within[-1][0] if within else "", node.name)
    return names


def _calls(node: fx.Node, prefix: str) -> list[tuple[Call, str]]:
    """The calls of modules that an exported node was made in, outermost first, and their kinds."""
    found = []
    for key, (path, kind) in (node.meta.get("nn_module_stack") or {}).items():
        path = re.sub(r"^L\['self'\]\.?", "", str(path))
        path = f"{path}.".removeprefix(prefix).removesuffix(".")
        number = re.search(r"@([0-9]+)$", str(key))
        if path:
            found.append(((path, int(number.group(1)) if number else 0), str(kind)))
    return found


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
    return f"stopped{inside}{place}: {first_line(error)}"


def drop_assertions(module: fx.GraphModule) -> None:
    """Drop what only checks."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in _ASSERTS:
            module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()


def erase_dead(module: fx.GraphModule) -> None:
    """Drop nodes that nobody reads."""
    for node in reversed(list(module.graph.nodes)):
        if node.op not in ("placeholder", "output") and not node.users:
            module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()
