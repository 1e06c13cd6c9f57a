"""From a program to the bytes of an ONNX model: step by step, by the tables of operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...errors import BundleError, ExportError, first_line
from ..program.bounds import ghost, hold
from ..program.operators import Device, Ref, Step
from ..program.programs import Program
from . import layers, pointwise, products, shaping
from .writer import BATCHES, IR_VERSION, OPSET, Grown, NotWritten, Value, Writer, onnx_type

MISSING = "an ONNX model needs the package onnx; pip install 'partopt[ort]', or use --engine torch"
LOWERINGS: dict[str, pointwise.Lowering] = {
    **pointwise.LOWERINGS,
    **layers.LOWERINGS,
    **shaping.LOWERINGS,
    **products.LOWERINGS,
}


def lowered(program: Program, example: Sequence[torch.Tensor], dynamic: bool) -> bytes:
    """`program` as an ONNX model with its weights inside; opset `OPSET`, not optimised.

    Args:
        program: With its tensors.
        example: Inputs, first dimension the batch; only their shapes are looked at.
        dynamic: Whether it must run at other batch sizes than the example's.

    Raises:
        ExportError: ``onnx`` is missing, or an operator cannot be written; it is named.
    """
    try:
        from onnx import helper
    except ImportError:
        raise ExportError(MISSING) from None
    values = _looked_at(program, example, dynamic)
    inputs = values[: len(program.inputs)]
    for i, value in enumerate(inputs):
        value.name = f"x{i}"
    w = Writer(inputs[0].name)
    for step in program.steps:
        _write(w, step, values)
    outputs, infos = [], []
    for i, index in enumerate(program.outputs):
        w.begin(f"y{i}")
        outputs.append(w.node("Identity", w.name(values[index])))
        infos.append(values[index])
    graph = helper.make_graph(
        w.nodes,
        "head",
        [_info(v.name, v) for v in inputs],
        [_info(n, v) for n, v in zip(outputs, infos, strict=True)],
        w.initialisers,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="partopt",
    )
    return bytes(model.SerializeToString())


def _looked_at(program: Program, example: Sequence[torch.Tensor], dynamic: bool) -> list[Any]:
    """Every value of the program, with its shape at each of the batch sizes."""
    constants = [program.tensors[n] for n in program.constants]
    held = []
    for batch in BATCHES if dynamic else (1,):
        given = [
            ghost((t.shape[0] * batch if dynamic else t.shape[0], *t.shape[1:]), t.dtype)
            for t in (e[:1] if dynamic else e for e in example)
        ]
        try:
            held.append(hold([*given, *constants], program.steps))
        except BundleError as error:
            raise ExportError(f"the program cannot be written as ONNX: {error}") from None
    values = [_merged(v) for v in zip(*held, strict=True)]
    for i, tensor in enumerate(constants, len(program.inputs)):
        values[i].constant = tensor
    return values


def _merged(seen: Sequence[Any]) -> Any:
    """One value from what it is at each batch size."""
    first = seen[0]
    if isinstance(first, torch.Tensor):
        if len({t.ndim for t in seen}) > 1:
            raise ExportError("a tensor has more dimensions at one batch size than at another")
        return Value(tuple(seen))
    if isinstance(first, (list, tuple)):
        return [_merged(v) for v in zip(*seen, strict=True)]
    same = all(s == first for s in seen)
    return first if same or not isinstance(first, int) else Grown(first)


def _write(w: Writer, step: Step, values: list[Any]) -> None:
    """Write one step; its result's names go into `values`."""
    result = values[step.result]
    args = [_put(a, values) for a in step.args]
    kwargs = {k: _put(v, values) for k, v in step.kwargs.items()}
    try:
        if step.op.startswith("size.") or not _has_tensors(result):
            if step.op == "size.getitem":
                values[step.result] = args[0][args[1]]
            return
        if _is_constant([*args, *kwargs.values()]):
            _fold(step, args, kwargs, result)
            return
        lower = LOWERINGS.get(step.op)
        if lower is None:
            raise NotWritten("")
        w.begin(f"v{step.result}")
        bound = _bound(step.call, args, kwargs)
        if step.op in shaping.FILLS and not any(a for a, _ in result.dims):
            result.constant = shaping.filled(step.op, bound, result)
            return
        if _takes_growing(step.op, bound):
            raise NotWritten("a number that grows with the batch")
        names = lower(w, bound, result)
    except NotWritten as error:
        why = f" ({error})" if str(error) else ""
        raise ExportError(
            f"the operator {step.op!r} is not written as ONNX{why}; use --engine torch"
        ) from None
    if isinstance(names, str):
        result.name = names
        return
    for value, name in zip(result, names, strict=False):
        value.name = name


def _put(arg: Any, values: list[Any]) -> Any:
    if isinstance(arg, Ref):
        return values[arg.index]
    if isinstance(arg, (list, tuple)):
        return [_put(a, values) for a in arg]
    return torch.device("cpu") if isinstance(arg, Device) else arg


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [f for v in value for f in _flat(v)]
    return [value]


def _has_tensors(result: Any) -> bool:
    return any(isinstance(v, Value) for v in _flat(result))


def _is_constant(args: Sequence[Any]) -> bool:
    return all(
        not isinstance(a, Grown) and (not isinstance(a, Value) or a.constant is not None)
        for a in _flat(args)
    )


def _fold(step: Step, args: list[Any], kwargs: dict[str, Any], result: Any) -> None:
    """Compute a step whose arguments are all constants."""

    def real(arg: Any) -> Any:
        if isinstance(arg, list):
            return [real(a) for a in arg]
        return arg.constant if isinstance(arg, Value) else arg

    try:
        with torch.inference_mode():
            found = step.call(*map(real, args), **{k: real(v) for k, v in kwargs.items()})
    except RuntimeError as error:
        raise ExportError(f"{step.op!r} fails on constants: {first_line(error)}") from error
    for value, tensor in zip(_flat(result), _flat(found), strict=True):
        if isinstance(value, Value):
            value.constant = tensor.contiguous()


def _bound(call: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by the names of the operator's schema, with its defaults."""
    found: dict[str, Any] = {}
    for i, argument in enumerate(call._schema.arguments):  # type: ignore[attr-defined]
        if i < len(args):
            found[argument.name] = args[i]
        elif argument.name in kwargs:
            found[argument.name] = kwargs[argument.name]
        else:
            found[argument.name] = argument.default_value
    return found


def _takes_growing(op: str, bound: dict[str, Any]) -> bool:
    """Whether a size that grows with the batch is an argument of something else than a shape."""
    if op in _SHAPED:
        return False
    return any(isinstance(a, Grown) for a in _flat(list(bound.values())))


# Written from the shape of their result, whatever sizes they are given.
_SHAPED = frozenset(
    f"aten.{name}"
    for name in (
        *("view.default", "reshape.default", "_unsafe_view.default", "unflatten.int"),
        *("expand.default", "full.default", "zeros.default", "ones.default", "new_full.default"),
        *("new_zeros.default", "new_ones.default"),
    )
)


def _info(name: str, value: Value) -> Any:
    from onnx import helper

    shape = [("batch" if a == 1 else f"{a} batch") if a else b for a, b in value.dims]
    return helper.make_tensor_value_info(name, onnx_type(value.dtype), shape)
