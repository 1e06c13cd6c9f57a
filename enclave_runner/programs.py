"""A head or a tail as data: a list of ATen operators beside its tensors, and what runs it.

``torch.export.load`` may unpickle, so a program is stored as JSON. An operator is named like
``aten.conv2d.default``; only operators of ``torch.ops.aten`` that write to nothing, take no text
but a few known words, and return tensors or sizes can be named, so that reading a program cannot
run anything else. Besides them there are five operations on sizes.
"""

from __future__ import annotations

import json
import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..errors import BundleError, ExportError

MAX_NODES = 200_000
_SIZE_OPS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "getitem": operator.getitem,
}
_SIZE_NAMES = {function: name for name, function in _SIZE_OPS.items()}
# The words that operators of a network's forward pass take; a path or an equation is none.
_WORDS = frozenset(
    [
        "none",
        "tanh",
        "floor",
        "trunc",
        "constant",
        "reflect",
        "replicate",
        "circular",
        "mean",
        "sum",
    ]
)
DTYPES = {
    str(d).removeprefix("torch."): d
    for d in (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint8,
        torch.bool,
    )
}
_FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
    "preserve": torch.preserve_format,
}
_FORMAT_NAMES = {value: name for name, value in _FORMATS.items()}


@dataclass(frozen=True)
class Ref:
    """A value of the program: an input, a constant or the result of a step."""

    index: int


@dataclass(frozen=True)
class Device:
    """Stands for the device on which the program runs."""


@dataclass(frozen=True)
class Step:
    """One operator, its arguments, and the values that nobody reads after it."""

    op: str
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: int
    free: tuple[int, ...] = ()


@dataclass
class Program:
    """Inputs, constants, steps and outputs. Value indices run inputs, constants, then steps.

    Attributes:
        inputs: Names of the input tensors.
        constants: Names of the tensors that the weights file holds.
        steps: In execution order.
        outputs: Indices of the values that are returned, as a tuple.
        channels_last: Whether constants of four dimensions are laid out channels-last.
    """

    inputs: list[str]
    constants: list[str]
    steps: list[Step]
    outputs: list[int]
    channels_last: bool = False
    tensors: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def load(self, tensors: Mapping[str, torch.Tensor], device: str = "cpu") -> Program:
        """Give the program its constants and its device; return it.

        Raises:
            BundleError: A constant is missing.
        """
        missing = [n for n in self.constants if n not in tensors]
        if missing:
            raise BundleError(f"weights lack {missing[0]!r} ({len(missing)} missing); export again")
        self.device = torch.device(device)
        for name in self.constants:
            tensor = tensors[name].to(self.device)
            if self.channels_last and tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            self.tensors[name] = tensor
        return self

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run on `inputs`; return the outputs."""
        return self.run(inputs)[0]

    def run(
        self,
        inputs: Sequence[torch.Tensor],
        marks: Mapping[int, Any] | None = None,
        clock: Callable[[], Any] | None = None,
    ) -> tuple[tuple[torch.Tensor, ...], dict[int, Any]]:
        """Run, and read `clock` after every step whose index is in `marks`.

        Returns the outputs and ``{step index: clock reading}``.
        """
        values: list[Any] = [*inputs, *(self.tensors[n] for n in self.constants)]
        values.extend([None] * len(self.steps))
        read: dict[int, Any] = {}

        def get(arg: Any) -> Any:
            kind = type(arg)
            if kind is Ref:
                return values[arg.index]
            if kind is list:
                return [get(a) for a in arg]
            if kind is Device:
                return self.device
            return arg

        with torch.inference_mode():
            for index, step in enumerate(self.steps):
                args = [get(a) for a in step.args]
                kwargs = {k: get(v) for k, v in step.kwargs.items()} if step.kwargs else {}
                values[step.result] = step.call(*args, **kwargs)
                for dead in step.free:
                    values[dead] = None
                if marks is not None and index in marks:
                    read[index] = clock() if clock is not None else None
        return tuple(values[i] for i in self.outputs), read

    def to_json(self) -> str:
        """The program without its tensors."""
        steps = [[s.op, _to_data(list(s.args)), _to_data(s.kwargs)] for s in self.steps]
        data = {
            "inputs": self.inputs,
            "constants": self.constants,
            "steps": steps,
            "outputs": self.outputs,
            "channels_last": self.channels_last,
        }
        return json.dumps(data, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Program:
        """Read and check a program.

        Raises:
            BundleError: Not a program, or an operator that is not allowed.
        """
        try:
            data = json.loads(text)
            inputs, constants = _names(data["inputs"]), _names(data["constants"])
            raw, outputs = data["steps"], data["outputs"]
            if not isinstance(raw, list) or len(raw) > MAX_NODES:
                raise BundleError("program has no list of steps, or too many of them")
            first = len(inputs) + len(constants)
            steps = [_step(entry, first + i) for i, entry in enumerate(raw)]
            if any(type(o) is not int or not 0 <= o < first + len(steps) for o in outputs):
                raise BundleError("program returns a value that it does not have")
            channels_last = data["channels_last"] is True
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(
                f"program cannot be read ({type(error).__name__}); export again"
            ) from (None)
        return cls(inputs, constants, with_frees(steps, outputs, first), outputs, channels_last)


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or any(type(v) is not str for v in value):
        raise BundleError("program has a name that is no text")
    return value


def _step(entry: Any, result: int) -> Step:
    op, args, kwargs = entry
    if type(op) is not str or not isinstance(args, list) or not isinstance(kwargs, dict):
        raise BundleError("program has a step that is no operator with arguments")
    args = [_from_data(a, result) for a in args]
    kwargs = {str(k): _from_data(v, result) for k, v in kwargs.items()}
    return Step(op, operator_named(op), tuple(args), kwargs, result)


def with_frees(steps: Sequence[Step], outputs: Sequence[int], first: int) -> list[Step]:
    """Note at each step which results are dead after it."""
    last: dict[int, int] = {}
    for i, step in enumerate(steps):
        for index in (*_refs(step.args), *_refs(list(step.kwargs.values())), step.result):
            last[index] = i
    free: dict[int, list[int]] = {}
    for index, i in last.items():
        if index not in outputs and index >= first:
            free.setdefault(i, []).append(index)
    return [
        Step(s.op, s.call, s.args, s.kwargs, s.result, tuple(free.get(i, ())))
        for i, s in enumerate(steps)
    ]


def _refs(args: Sequence[Any]) -> list[int]:
    found: list[int] = []
    for arg in args:
        if type(arg) is Ref:
            found.append(arg.index)
        elif type(arg) in (list, tuple):
            found.extend(_refs(arg))
    return found


def operator_named(name: str) -> Callable[..., Any]:
    """The operator of that name.

    Raises:
        BundleError: It does not exist or is not allowed in a program.
    """
    if name.startswith("size."):
        function = _SIZE_OPS.get(name.removeprefix("size."))
        if function is None:
            raise BundleError(f"program names {name!r}, which is no operation on sizes")
        return function
    space, _, rest = name.partition(".")
    base, _, overload = rest.partition(".")
    packet = (
        getattr(torch.ops.aten, base, None) if space == "aten" and base.isidentifier() else None
    )
    found = getattr(packet, overload, None) if overload.isidentifier() else None
    if not isinstance(found, torch._ops.OpOverload):
        raise BundleError(f"program names {name!r}, which is no ATen operator")
    schema = found._schema
    words = [a for a in schema.arguments if "str" in str(a.type)]
    known = ("approximate", "rounding_mode", "mode", "reduce", "padding")
    if schema.is_mutable or not schema.returns or any(a.name not in known for a in words):
        raise BundleError(f"program names {name!r}, which a program may not use")
    return found


def _to_data(value: Any) -> Any:
    """Arguments as JSON: everything but numbers, booleans, None and words is tagged."""
    if isinstance(value, Ref):
        return {"v": value.index}
    if isinstance(value, Device):
        return {"device": True}
    if isinstance(value, (list, tuple)):
        return [_to_data(v) for v in value]
    if isinstance(value, dict):
        return {k: _to_data(v) for k, v in value.items()}
    if isinstance(value, torch.dtype):
        name = str(value).removeprefix("torch.")
        if name in DTYPES:
            return {"dtype": name}
    if isinstance(value, torch.memory_format) and value in _FORMAT_NAMES:
        return {"format": _FORMAT_NAMES[value]}
    if isinstance(value, torch.layout) and value is torch.strided:
        return {"layout": "strided"}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str) and value in _WORDS:
        return {"word": value}
    raise ExportError(
        f"an argument {str(value)[:60]!r} of an operator cannot be stored; cut elsewhere"
    )


def _from_data(value: Any, before: int) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, list):
        return [_from_data(v, before) for v in value]
    if isinstance(value, dict) and len(value) == 1:
        ((tag, inner),) = value.items()
        if tag == "v" and type(inner) is int and 0 <= inner < before:
            return Ref(inner)
        if tag == "device":
            return Device()
        if tag == "dtype" and inner in DTYPES:
            return DTYPES[inner]
        if tag == "format" and inner in _FORMATS:
            return _FORMATS[inner]
        if tag == "layout" and inner == "strided":
            return torch.strided
        if tag == "float" and inner in ("inf", "-inf", "nan"):
            return float(inner)
        if tag == "word" and inner in _WORDS:
            return inner
    raise BundleError(f"program has the argument {str(value)[:60]!r}, which nothing writes")


def record(module: fx.GraphModule, example: Sequence[torch.Tensor], dynamic: bool) -> Program:
    """Turn a traced module into a program, constants loaded.

    Args:
        module: A head, a tail or a whole model; returns a tensor or a tuple of tensors.
        example: Inputs, first dimension the batch.
        dynamic: Whether the program must run at other batch sizes than the example's.

    Raises:
        ExportError: The module uses more than plain ATen operators.
    """
    shapes = None
    if dynamic:
        example = [torch.cat([t, t]) if t.shape[0] == 1 else t for t in example]
        auto = {0: torch.export.Dim.AUTO}
        shapes = tuple(dict(auto) for _ in example)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(
                module, tuple(example), dynamic_shapes=shapes, strict=False
            )
            if any(_mutates(n) for n in exported.graph.nodes):
                exported = exported.run_decompositions({})
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(f"torch.export could not export the module: {first}") from error
    return _from_export(exported)


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _from_export(exported: torch.export.ExportedProgram) -> Program:
    signature = exported.graph_signature
    tensors: dict[str, torch.Tensor] = {}
    held: dict[str, str] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    placeholders = [n for n in exported.graph.nodes if n.op == "placeholder"]
    users = [n for n in placeholders if n.name not in held]
    constants = [n for n in placeholders if n.name in held and n.users]
    for node in constants:
        name = held[node.name]
        source = exported.state_dict if name in exported.state_dict else exported.constants
        tensors[name] = source[name].detach()
    index = {node: i for i, node in enumerate([*users, *constants])}
    first = len(index)
    steps: list[Step] = []

    def arg(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return Ref(index[value])
        if isinstance(value, (list, tuple)):
            return [arg(v) for v in value]
        if isinstance(value, torch.device):
            return Device()
        if isinstance(value, (torch.SymInt, torch.SymFloat)):
            raise ExportError("a size of the module is not plain; cut elsewhere")
        return value

    outputs: list[int] = []
    for node in exported.graph.nodes:
        if node.op == "output":
            outputs = [index[n] for n in node.args[0]]
        elif node.op == "call_function" and not _is_check(node):
            op = _name_of(node)
            result = first + len(steps)
            args = tuple(arg(a) for a in node.args)
            kwargs = {k: arg(v) for k, v in node.kwargs.items()}
            steps.append(Step(op, operator_named(op), args, kwargs, result))
            index[node] = result
        elif node.op not in ("placeholder", "call_function"):
            raise ExportError(
                f"the module holds {node.op} {node.target}, which no program can hold"
            )
    names = [n.name for n in users]
    program = Program(
        names, [held[n.name] for n in constants], with_frees(steps, outputs, first), outputs
    )
    _to_data([[list(s.args), s.kwargs] for s in steps])  # raises what could not be stored
    return program.load(tensors)


def _is_check(node: fx.Node) -> bool:
    name = str(node.target)
    return not node.users and ("assert" in name or "sym_constrain" in name or "_guards" in name)


def _name_of(node: fx.Node) -> str:
    if node.target in _SIZE_NAMES:
        return f"size.{_SIZE_NAMES[node.target]}"
    if isinstance(node.target, torch._ops.OpOverload):
        name = str(node.target)
        try:
            operator_named(name)
        except BundleError as error:
            raise ExportError(f"{error}; cut elsewhere") from None
        return name
    raise ExportError(f"the module calls {node.target}, which is no ATen operator; cut elsewhere")


def join(head: Program, tail: Program) -> Program:
    """The whole model from its two halves: what the head returns is what the tail takes."""
    # Both may have a constant of one name; it need not be the same one.
    names = {n: f"tail.{n}" if n in head.tensors else n for n in tail.constants}
    constants = [*head.constants, *names.values()]
    first = len(head.inputs) + len(constants)
    heads, tails = len(head.constants), len(tail.constants)
    own = len(head.inputs) + heads

    def of_head(index: int) -> int:
        return index if index < own else index + tails

    outputs = [of_head(i) for i in head.outputs]

    def of_tail(index: int) -> int:
        if index < len(tail.inputs):
            return outputs[index]
        if index < len(tail.inputs) + tails:
            return own + index - len(tail.inputs)
        return index - len(tail.inputs) - tails + first + len(head.steps)

    steps = [*(moved(s, of_head) for s in head.steps), *(moved(s, of_tail) for s in tail.steps)]
    ends = [of_tail(i) for i in tail.outputs]
    whole = Program(head.inputs, constants, with_frees(steps, ends, first), ends, False)
    whole.tensors = {**head.tensors, **{names[n]: t for n, t in tail.tensors.items()}}
    return whole


def moved(step: Step, place: Callable[[int], int]) -> Step:
    """`step` with every value index mapped by `place`; frees are to be found anew."""

    def at(arg: Any) -> Any:
        if isinstance(arg, Ref):
            return Ref(place(arg.index))
        return [at(a) for a in arg] if isinstance(arg, list) else arg

    args = tuple(at(a) for a in step.args)
    kwargs = {k: at(v) for k, v in step.kwargs.items()}
    return Step(step.op, step.call, args, kwargs, place(step.result))
