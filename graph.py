"""The layer graph of a model: what can be cut, where, and what each side would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from . import cuts as _cuts
from . import figures, tracing
from .errors import TraceError, UsageError
from .nodes import Cut, Node, TensorSpec

__all__ = ["Cut", "LayerGraph", "Node", "TensorSpec", "trace"]

SECOND = 2  # shapes are measured at the example's batch size and at so many images more
_LAYERS = {"Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d", "Linear", "conv2d", "linear"}
_LOSSLESS_MODULES = {
    "Dropout", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout", "Flatten",
    "Identity", "Permute", "StochasticDepth", "Unflatten",
}  # fmt: skip
_LOSSLESS_CALLS = {
    "clone", "contiguous", "detach", "dropout", "flatten", "permute", "reshape", "squeeze",
    "stochastic_depth", "t", "transpose", "unflatten", "unsqueeze", "view",
}  # fmt: skip


@dataclass
class LayerGraph:
    """A traced model: a clean ``torch.fx`` graph and the figures of every node.

    Attributes:
        module: The graph as an executable ``fx.GraphModule`` that shares the model's parameters.
        nodes: Every node in execution order.
        model_class: Class name of the traced model.
        source: ``"torch.fx"`` or ``"torch.export"``.
        inputs: Shapes and dtypes of the example input.
        fixed_batch: The only batch size the graph can run at, or None where any will do.
        sizes: For nodes without a tensor output, their value at two batch sizes.
    """

    module: fx.GraphModule
    nodes: list[Node]
    model_class: str
    source: str
    inputs: tuple[TensorSpec, ...]
    fixed_batch: int | None
    sizes: dict[str, tuple[Any, Any]] = field(repr=False, default_factory=dict)
    second_shapes: dict[str, tuple[int, ...]] = field(repr=False, default_factory=dict)

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
            named = [_cuts.find_named(self.nodes, every, name) for name in kind]
            by_node = {c.node: c for c in named}
            picked = [by_node[i] for i in sorted(by_node)]
        at_stage = {c.node for c in stages}
        return [replace(c, index=i, stage=c.node in at_stage) for i, c in enumerate(picked)]

    def cut(self, name: str) -> Cut:
        """The cut called `name` (a node, an alias of a merged cut, or a module path)."""
        return _cuts.find_named(self.nodes, self._every_cut(), name)

    def _every_cut(self) -> list[Cut]:
        last = _cuts.last_reader(self.nodes)
        sizes = [n for n in self.nodes if n.fx_name in self.sizes and n.inputs and not n.from_input]

        def portable(node: int, boundary: tuple[int, ...]) -> bool:
            """Whether every size that crosses can be recomputed from a boundary tensor's shape."""
            crossing = [n for n in sizes if n.index <= node < last[n.index]]
            return all(self.size_source(n.fx_name, boundary) is not None for n in crossing)

        return _cuts.every_cut(self.nodes, portable)

    def size_source(self, fx_name: str, boundary: tuple[int, ...]) -> tuple[int, int, int] | None:
        """How to recompute a size in the tail: ``(position, multiply, divide)``.

        The size equals ``boundary[position].shape[0] * multiply // divide`` at any batch.
        """
        first, second = self.sizes[fx_name]
        if not isinstance(first, int) or not isinstance(second, int):
            return None
        for position, index in enumerate(boundary):
            spec = self.nodes[index].spec
            assert spec is not None
            b1, b2 = spec.shape[0] if spec.shape else 0, 0
            b2 = self.second_shapes[self.nodes[index].fx_name][0] if spec.shape else 0
            if b1 != b2 and first * b2 == second * b1:
                return position, first, b1
        return None


def trace(
    model: nn.Module,
    example_input: torch.Tensor | tuple[torch.Tensor, ...],
    *,
    leaf_modules: Sequence[type[nn.Module]] = (),
    concrete_args: Mapping[str, Any] | None = None,
) -> LayerGraph:
    """Trace `model` in eval mode into a layer graph.

    ``torch.fx.symbolic_trace`` is tried first (with torchvision's qualified names), then
    ``torch.export``. The model itself is not changed.

    Args:
        model: The network. Its training flag is restored afterwards.
        example_input: One input, or a tuple of inputs; the first dimension is the batch.
        leaf_modules: Module classes to keep as one node.
        concrete_args: Arguments of ``forward`` to fix, as in ``torch.fx.symbolic_trace``.

    Raises:
        TraceError: Neither way works; the message names the module and line, and what to try.
    """
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        return _trace_eval(model, example, leaf_modules, concrete_args)
    finally:
        for module, training in modes.items():
            module.training = training


def _trace_eval(
    model: nn.Module,
    example: tuple[torch.Tensor, ...],
    leaf_modules: Sequence[type[nn.Module]],
    concrete_args: Mapping[str, Any] | None,
) -> LayerGraph:
    name = type(model).__name__
    try:
        module, names = tracing.symbolic(model, leaf_modules, concrete_args)
        return build(module, names, example, name, "torch.fx")
    except Exception as first:
        if isinstance(first, (KeyboardInterrupt, MemoryError)):
            raise
        try:
            module, names = tracing.exported(model, example)
            return build(module, names, example, name, "torch.export")
        except TraceError as second:
            raise TraceError(
                f"`model` {name} cannot be traced: torch.fx {first}; torch.export {second}; "
                "name the module that branches on data in `leaf_modules`, fix the argument it "
                "branches on with `concrete_args`, or rewrite the line"
            ) from second


def build(
    module: fx.GraphModule,
    names: Mapping[str, str],
    example: tuple[torch.Tensor, ...],
    model_class: str,
    source: str,
) -> LayerGraph:
    """Clean a traced graph, measure its nodes and wrap it up."""
    # Parameters written into another graph's codegen must not drag it into train mode.
    for submodule in module.modules():
        submodule.training = False
    tracing.clean(module)
    first = figures.measure(module, example)
    larger = tuple(torch.cat([t, t[:1].expand(SECOND, *t.shape[1:])]) for t in example)
    try:
        second = figures.measure(module, larger)
        fixed = None
    except Exception:
        second, fixed = first, example[0].shape[0]
    plain = {n for n, f in first.items() if not isinstance(f.value, torch.Tensor)}
    tracing.inline_sizes(module, {n: (first[n].value, second[n].value) for n in plain})
    kept = {n.name for n in module.graph.nodes}
    nodes = _nodes(module, names, first)
    return LayerGraph(
        module=module,
        nodes=nodes,
        model_class=model_class,
        source=source,
        inputs=tuple(_spec(f"input_{i}", t) for i, t in enumerate(example)),
        fixed_batch=fixed,
        sizes={n: (first[n].value, second[n].value) for n in plain & kept},
        second_shapes={
            n: tuple(f.value.shape)
            for n, f in second.items()
            if n in kept and isinstance(f.value, torch.Tensor)
        },
    )


def _spec(name: str, tensor: torch.Tensor) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(int(d) for d in tensor.shape)
    return TensorSpec(name, shape, dtype, tensor.numel() * tensor.element_size())


def _nodes(
    module: fx.GraphModule, names: Mapping[str, str], seen: Mapping[str, figures.NodeFigures]
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
            any(nodes[j].from_input for j in inputs) and not _is_size(n, value)
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
                lossless=from_input and _is_lossless(n, op),
                is_layer=op in _LAYERS,
            )
        )
    return nodes


def _is_size(node: fx.Node, value: Any) -> bool:
    """Sizes and shapes say nothing about the input's values."""
    if isinstance(value, (int, torch.Size, torch.dtype, torch.device)):
        return True
    return isinstance(value, tuple) and bool(value) and all(isinstance(v, int) for v in value)


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


def _param_bytes(module: fx.GraphModule, node: fx.Node, counted: set[int]) -> int:
    """Bytes of parameters and buffers, each counted at its first reader."""
    tensors: list[torch.Tensor] = []
    if node.op == "call_module":
        leaf = module.get_submodule(str(node.target))
        tensors = [*leaf.parameters(), *leaf.buffers()]
    elif node.op == "get_attr":
        value: Any = module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        tensors = [value] if isinstance(value, torch.Tensor) else []
    fresh = [t for t in tensors if id(t) not in counted]
    counted.update(id(t) for t in fresh)
    return sum(t.numel() * t.element_size() for t in fresh)


def _live_bytes(
    fx_nodes: Sequence[fx.Node],
    index: Mapping[fx.Node, int],
    seen: Mapping[str, figures.NodeFigures],
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
