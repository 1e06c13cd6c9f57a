"""The layer graph of a model: what can be cut, where, and what each side would cost."""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from ..errors import TraceError, UsageError
from . import costs, tracing
from . import cuts as _cuts
from .answers import answer_nodes
from .fidelity import compare
from .inplace import make_out_of_place, set_submodule
from .nodes import Cut, Node, TensorSpec
from .reference import Reference, look, untouched
from .sizes import Recipe, find_sizes, inline, recipe

__all__ = ["Cut", "LayerGraph", "Node", "TensorSpec", "trace"]

SECOND = 2  # shapes are measured at the example's batch size and at so many images more
_LAYERS = {"Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d", "Linear", "conv2d", "linear"}
_LOSSLESS_MODULES = {
    "Dropout",
    "Dropout2d",
    "Dropout3d",
    "AlphaDropout",
    "FeatureAlphaDropout",
    "Flatten",
    "Identity",
    "Permute",
    "StochasticDepth",
    "Unflatten",
}
_LOSSLESS_CALLS = {
    "_unsafe_view",
    "alias",
    "clone",
    "contiguous",
    "detach",
    "dropout",
    "flatten",
    "moveaxis",
    "movedim",
    "permute",
    "reshape",
    "squeeze",
    "stochastic_depth",
    "swapaxes",
    "swapdims",
    "t",
    "transpose",
    "unflatten",
    "unsqueeze",
    "view",
    "view_as",
}
# Lossless where the dtype stays.
_CASTS = {"_to_copy", "cpu", "float", "to", "type", "type_as"}


@dataclass
class LayerGraph:
    """A traced model: a clean ``torch.fx`` graph and the costs of every node.

    Attributes:
        module: The graph as an executable ``fx.GraphModule`` that shares the model's parameters.
        nodes: Every node in execution order.
        model_class: Class name of the traced model.
        source: ``"torch.fx"`` or ``"torch.export"``.
        inputs: Shapes and dtypes of the example input.
        fixed_batch: The only batch size the graph can run at, or None where any will do.
        sizes: For values that shapes alone decide, their value at two batch sizes.
        difference: How far rounding moves results from the model's, as a share of what they vary
            by from input to input; 0 where they are the same bit for bit.
        also: Other paths of modules, with the path that their nodes are named by.
    """

    module: fx.GraphModule
    nodes: list[Node]
    model_class: str
    source: str
    inputs: tuple[TensorSpec, ...]
    fixed_batch: int | None
    sizes: dict[str, tuple[Any, Any]] = field(repr=False, default_factory=dict)
    second_shapes: dict[str, tuple[int, ...]] = field(repr=False, default_factory=dict)
    difference: float = 0.0
    also: dict[str, str] = field(repr=False, default_factory=dict)

    @property
    def flops(self) -> int:
        """FLOPs of the whole model at the example input's batch size."""
        return sum(n.flops for n in self.nodes)

    @property
    def param_bytes(self) -> int:
        """Bytes of all parameters and buffers the graph reads."""
        return sum(n.param_bytes for n in self.nodes)

    @property
    def peak_activation_bytes(self) -> int:
        """Largest sum of live activations over the whole run."""
        return max(n.live_bytes for n in self.nodes)

    @property
    def likeness(self) -> str:
        """How well the graph does what the model does, in a phrase."""
        if not self.difference:
            return "the graph gives the model's answers bit for bit"
        return f"the graph is the model up to rounding ({self.difference:.1e} of what values vary)"

    @property
    def answers(self) -> list[fx.Node]:
        """The ``torch.fx`` nodes of the tensors that the model answers with."""
        by_name = {n.fx_name: n for n in self.nodes}
        return [n for n in answer_nodes(self.module.graph) if by_name[n.name].spec is not None]

    def fx_node(self, index: int) -> fx.Node:
        """The ``torch.fx`` node behind the node at `index`."""
        wanted = self.nodes[index].fx_name
        found: fx.Node = next(n for n in self.module.graph.nodes if n.name == wanted)
        return found

    def cuts(
        self,
        kind: str | Sequence[str] = "clean",
        *,
        max_cuts: int | None = None,
        depth: int | None = None,
    ) -> list[Cut]:
        """List cuts in execution order.

        Args:
            kind: ``"clean"`` (one boundary tensor), ``"all"``, ``"stage"`` (module boundaries),
                ``"paper"`` (the published points), or a sequence of node or module names.
            max_cuts: For ``clean`` and ``all``: keep at most so many, spread over the cost,
                stage boundaries first. None keeps all.
            depth: Module depth of a stage; None picks the smallest that gives five.

        Raises:
            UsageError: Unknown kind, or an architecture without published points.
            CutError: A name that is no cut.
        """
        every = self._every_cut()
        clean = _cuts.clean_cuts(every)
        stages = _cuts.stage_cuts(self.nodes, clean, depth or _cuts.stage_depth(self.nodes, clean))
        if isinstance(kind, str) and kind not in _cuts.KINDS:
            kinds = ", ".join(repr(k) for k in _cuts.KINDS)
            raise UsageError(f"`cuts` got {kind!r}; use {kinds} or a list of node names")
        if kind == "paper":
            picked = _cuts.published_cuts(self.model_class, self.nodes, every)
        elif kind == "stage":
            picked = stages
        elif isinstance(kind, str):
            picked = clean if kind == "clean" else every
            if max_cuts is not None:
                if max_cuts < 1:
                    raise UsageError(f"`max_cuts` got {max_cuts}; use 1 or more")
                picked = _cuts.thin(picked, max_cuts, stages)
        else:
            named = [_cuts.find_named(self.nodes, every, name, self.also) for name in kind]
            by_node = {c.node: c for c in named}
            picked = [by_node[i] for i in sorted(by_node)]
        at_stage = {c.node for c in stages}
        return [replace(c, index=i, stage=c.node in at_stage) for i, c in enumerate(picked)]

    def cut(self, name: str) -> Cut:
        """The cut called `name` (a node, an alias of a merged cut, or a module path)."""
        return _cuts.find_named(self.nodes, self._every_cut(), name, self.also)

    def _every_cut(self) -> list[Cut]:
        last = _cuts.last_reader(self.nodes)
        index = {n.fx_name: n.index for n in self.nodes}
        answers = [index[n.name] for n in self.answers]
        made = [n for n in self.nodes if n.inputs and not n.from_input]

        def portable(node: int, boundary: tuple[int, ...]) -> bool:
            """Whether a tail can make every size and constant that it needs of the head's."""
            crossing = [n.index for n in made if n.index <= node < last[n.index]]
            return all(self._remakable(i, boundary) for i in crossing)

        shared = sorted(self._shared().items())
        return [
            replace(cut, shared=tuple(n for n, (a, b) in shared if a <= cut.node < b))
            for cut in _cuts.every_cut(self.nodes, answers, portable)
        ]

    def _remakable(self, index: int, boundary: tuple[int, ...]) -> bool:
        node = self.nodes[index]
        if node.from_input:
            return index in boundary
        if self.size_recipe(node.fx_name, boundary) is not None:
            return True
        return all(self._remakable(i, boundary) for i in node.inputs)

    def _shared(self) -> dict[str, tuple[int, int]]:
        """Parameters that several nodes read, with the first and the last of these."""
        names: dict[int, str] = {}
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), name)
        readers: dict[int, list[int]] = {}
        owner: dict[int, str] = {}
        held: dict[int, set[int]] = {}
        for node, fx_node in zip(self.nodes, self.module.graph.nodes, strict=True):
            own = {
                id(t): t for t in read_by(self.module, fx_node) if id(t) in names and t.numel() > 1
            }
            places = {_storage(t): names[i] for i, t in own.items()}
            owner = {**places, **owner}
            held[node.index] = set(places).union(
                *(held[i] for i in node.inputs if not self.nodes[i].from_input)
            )
            if node.from_input:
                for place in held[node.index]:
                    readers.setdefault(place, []).append(node.index)
        return {owner[p]: (at[0], at[-1]) for p, at in readers.items() if at[0] < at[-1]}

    def size_recipe(self, fx_name: str, boundary: tuple[int, ...]) -> Recipe | None:
        """How a tail makes a size from the tensors at the indices `boundary`; None: it cannot."""
        if fx_name not in self.sizes:
            return None
        shapes = []
        for index in boundary:
            spec = self.nodes[index].spec
            assert spec is not None
            shapes.append((spec.shape, self.second_shapes[self.nodes[index].fx_name]))
        return recipe(*self.sizes[fx_name], shapes)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def trace(
    model: nn.Module,
    example_input: torch.Tensor | tuple[torch.Tensor, ...],
    *,
    leaf_modules: Sequence[type[nn.Module]] = (),
    concrete_args: Mapping[str, Any] | None = None,
) -> LayerGraph:
    """Trace `model` in eval mode into a layer graph.

    ``torch.fx.symbolic_trace`` is tried first (with torchvision's qualified names), then
    ``torch.export``. What comes out is compared with the model on random inputs (see `fidelity`).
    The model itself is not changed; arguments of ``forward`` behind the inputs keep their defaults.

    Args:
        model: The network. Its training flag is restored afterwards.
        example_input: One input, or a tuple of inputs; the first dimension is the batch.
        leaf_modules: Module classes to keep as one node.
        concrete_args: Arguments of ``forward`` to fix, where the defaults will not do.

    Raises:
        TraceError: Neither way gives the model's answers; the message names the module and line,
            and what to try.
        UsageError: `concrete_args` names no argument.
    """
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    request = tracing.Request(tuple(leaf_modules), dict(concrete_args or {}))
    request.bind(model, len(example))
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with untouched(model):
            graph = _trace_eval(model, example, request)
    finally:
        for module, training in modes.items():
            module.training = training
    if any(modes.values()):
        # Leaf modules are the model's own, and would go back to train mode with it.
        shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
        for path in {str(n.target) for n in graph.module.graph.nodes if n.op == "call_module"}:
            own = copy.deepcopy(graph.module.get_submodule(path), dict(shared))
            set_submodule(graph.module, path, own.eval())
    return graph


def _trace_eval(
    model: nn.Module, example: tuple[torch.Tensor, ...], request: tracing.Request
) -> LayerGraph:
    reference = look(model, example, functools.partial(model, **request.concrete_args))
    also = {path: first for path, first in tracing.module_paths(model).items() if path != first}
    name, failed = type(model).__name__, []
    try:
        traced = tracing.symbolic(model, len(example), request)
        return replace(verified(build(traced, example, name), reference), also=also)
    except MemoryError:
        raise
    except Exception as error:
        failed.append(f"torch.fx {_reason(error)}")
    try:
        made = tracing.exported(model, example, request)
        return replace(by_export(made, example, name, reference), also=also)
    except TraceError as error:
        failed.append(f"torch.export {error}")
    raise TraceError(
        f"`model` {name} cannot be traced: {'; '.join(failed)}; "
        "name the module that branches on data in `leaf_modules`, fix the argument it "
        "branches on with `concrete_args`, or rewrite the line"
    )


def by_export(
    made: tracing.Exported, example: tuple[torch.Tensor, ...], name: str, reference: Reference
) -> LayerGraph:
    """The layer graph of an exported program, made functional where it has to be.

    Raises:
        TraceError: It is another network than the one in `reference`.
    """
    failed: list[str] = []
    for functional in (False, True):
        try:
            return verified(build(tracing.from_program(made, functional), example, name), reference)
        except MemoryError:
            raise
        except Exception as error:
            failed.append(_reason(error))
    raise TraceError("; made functional: ".join(dict.fromkeys(failed)))


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if isinstance(error, TraceError) else f"({type(error).__name__}) {lines[0]}"


def verified(graph: LayerGraph, reference: Reference) -> LayerGraph:
    """`graph` with its difference from the model filled in.

    Raises:
        TraceError: It is another network: it differs by more than rounding explains.
    """
    rewritten = graph.source == "torch.export"
    found = compare(reference, graph.module, graph.fixed_batch, certain=not rewritten)
    if found is None:
        return graph
    if found.tolerable and (rewritten or not reference.steady):
        return replace(graph, difference=found.share)
    raise TraceError(f"gives another network, which {found}")


def build(
    traced: tracing.Traced, example: tuple[torch.Tensor, ...], model_class: str
) -> LayerGraph:
    """Clean a traced graph, measure its nodes and wrap it up.

    Raises:
        TraceError: It writes to tensors in a way that no graph of values can follow.
    """
    module = traced.module
    # Parameters written into another graph's codegen must not drag it into train mode.
    for submodule in module.modules():
        submodule.training = False
    tracing.drop_assertions(module)
    first = costs.measure(module, example)
    if make_out_of_place(module, first):
        before, first = first, costs.measure(module, example)
        _same_kinds(before, first)
    tracing.erase_dead(module)
    larger = tuple(torch.cat([t, t[:1].expand(SECOND, *t.shape[1:])]) for t in example)
    try:
        second = costs.measure(module, larger)
        fixed = None
    except Exception:
        second, fixed = first, example[0].shape[0]
    found = find_sizes(module, {n: f.value for n, f in first.items()})
    sizes = {n: (first[n].value, second[n].value) for n in found}
    inline(module, sizes)
    tracing.erase_dead(module)
    kept = {n.name for n in module.graph.nodes}
    return LayerGraph(
        module=module,
        nodes=_nodes(module, traced.names, first, found),
        model_class=model_class,
        source=traced.source,
        inputs=tuple(_spec(f"input_{i}", t) for i, t in enumerate(example)),
        fixed_batch=fixed,
        sizes={n: v for n, v in sizes.items() if n in kept},
        second_shapes={
            n: tuple(f.value.shape)
            for n, f in second.items()
            if n in kept and isinstance(f.value, torch.Tensor)
        },
    )


def _same_kinds(
    before: Mapping[str, costs.NodeCosts], after: Mapping[str, costs.NodeCosts]
) -> None:
    """In-place arithmetic keeps the dtype of the tensor that it writes to."""
    for name, seen in after.items():
        a, b = before[name].value, seen.value
        if isinstance(a, torch.Tensor) and (a.dtype != b.dtype or a.shape != b.shape):
            raise TraceError(f"`{name}` gives {a.dtype} in-place and {b.dtype} out-of-place")


def _spec(name: str, tensor: torch.Tensor) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(int(d) for d in tensor.shape)
    return TensorSpec(name, shape, dtype, tensor.numel() * tensor.element_size())


def _nodes(
    module: fx.GraphModule,
    names: Mapping[str, str],
    seen: Mapping[str, costs.NodeCosts],
    sizes: Collection[str],
) -> list[Node]:
    fx_nodes = list(module.graph.nodes)
    index = {n: i for i, n in enumerate(fx_nodes)}
    live = _live_bytes(fx_nodes, index, seen)
    nodes: list[Node] = []
    counted: set[int] = set()
    for i, n in enumerate(fx_nodes):
        value = seen[n.name].value
        name = names.get(n.name, n.name)
        inputs = tuple(index[m] for m in n.all_input_nodes)
        op = _op_name(module, n)
        from_input = n.op == "placeholder" or (
            any(nodes[j].from_input for j in inputs) and n.name not in sizes
        )
        nodes.append(
            Node(
                index=i,
                name=name,
                fx_name=n.name,
                op=op,
                module_path=name if n.op == "call_module" else name.rpartition(".")[0],
                inputs=inputs,
                spec=_spec(name, value) if isinstance(value, torch.Tensor) else None,
                param_bytes=_param_bytes(module, n, counted),
                flops=seen[n.name].flops,
                live_bytes=live[i],
                from_input=from_input,
                lossless=from_input and (_is_lossless(n, op) or _is_idle_cast(n, op, seen)),
                is_layer=op in _LAYERS,
                calls=tuple(n.meta.get("calls", ())),
            )
        )
    return nodes


def _op_name(module: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__
    if node.op == "call_function":
        packet = getattr(node.target, "overloadpacket", node.target)
        return str(getattr(packet, "__name__", packet))
    return str(node.target) if node.op == "call_method" else node.op


def _is_lossless(node: fx.Node, op: str) -> bool:
    if node.op == "call_module":
        return op in _LOSSLESS_MODULES
    return node.op in ("call_function", "call_method") and op in _LOSSLESS_CALLS


def _is_idle_cast(node: fx.Node, op: str, seen: Mapping[str, costs.NodeCosts]) -> bool:
    if op not in _CASTS or not node.all_input_nodes:
        return False
    before, after = seen[node.all_input_nodes[0].name].value, seen[node.name].value
    return isinstance(before, torch.Tensor) and getattr(after, "dtype", None) == before.dtype


def read_by(module: fx.GraphModule, node: fx.Node) -> list[torch.Tensor]:
    """Parameters and buffers that a node itself reads."""
    if node.op == "call_module":
        leaf = module.get_submodule(str(node.target))
        return [*leaf.parameters(), *leaf.buffers()]
    if node.op != "get_attr":
        return []
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return [value] if isinstance(value, torch.Tensor) else []


def _param_bytes(module: fx.GraphModule, node: fx.Node, counted: set[int]) -> int:
    """Bytes of parameters and buffers, each counted at its first reader."""
    fresh = [t for t in read_by(module, node) if id(t) not in counted]
    counted.update(id(t) for t in fresh)
    return sum(t.numel() * t.element_size() for t in fresh)


def _live_bytes(
    fx_nodes: Sequence[fx.Node],
    index: Mapping[fx.Node, int],
    seen: Mapping[str, costs.NodeCosts],
) -> list[int]:
    """Bytes of distinct storages alive while each node runs; parameters are not activations."""
    born: dict[int, int] = {}
    died: dict[int, int] = {}
    size: dict[int, int] = {}
    for i, node in enumerate(fx_nodes):
        if node.op in ("get_attr", "output"):
            continue
        last = max((index[u] for u in node.users), default=i)
        for storage, nbytes in seen[node.name].storages.items():
            born.setdefault(storage, i)
            died[storage] = max(died.get(storage, i), last)
            size[storage] = nbytes
    change = [0] * (len(fx_nodes) + 1)
    for storage, start in born.items():
        change[start] += size[storage]
        change[died[storage] + 1 if died[storage] < len(fx_nodes) else -1] -= size[storage]
    live, total = [], 0
    for i in range(len(fx_nodes)):
        total += change[i]
        live.append(total)
    return live
