"""Operators that look at one element at a time: arithmetic, comparisons, activations, casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .writer import NotWritten, Value, Writer

Args = dict[str, Any]
Written = str | list[str]
Lowering = Callable[[Writer, Args, Value], Written]

_UNARY = {
    "abs": "Abs",
    "acos": "Acos",
    "acosh": "Acosh",
    "asin": "Asin",
    "asinh": "Asinh",
    "atan": "Atan",
    "atanh": "Atanh",
    "bitwise_not": "Not",
    "ceil": "Ceil",
    "cos": "Cos",
    "cosh": "Cosh",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "hardswish": "HardSwish",
    "isnan": "IsNaN",
    "log": "Log",
    "logical_not": "Not",
    "mish": "Mish",
    "neg": "Neg",
    "reciprocal": "Reciprocal",
    "relu": "Relu",
    "round": "Round",
    "sigmoid": "Sigmoid",
    "sign": "Sign",
    "sgn": "Sign",
    "sin": "Sin",
    "sinh": "Sinh",
    "sqrt": "Sqrt",
    "tan": "Tan",
    "tanh": "Tanh",
}
_BINARY = {
    "mul.Tensor": "Mul",
    "pow.Tensor_Tensor": "Pow",
    "minimum.default": "Min",
    "maximum.default": "Max",
    "fmod.Scalar": "Mod",
}
_COMPARED = {
    "eq": ("Equal", False),
    "ne": ("Equal", True),
    "gt": ("Greater", False),
    "ge": ("GreaterOrEqual", False),
    "lt": ("Less", False),
    "le": ("LessOrEqual", False),
}
_LOGICAL = {"logical_and": "And", "logical_or": "Or"}
_BITWISE = {"__and__": "And", "__or__": "Or", "__xor__": "Xor", "bitwise_and": "And"}
# Nothing of them is left where nobody trains.
_SAME = (
    *("clone", "contiguous", "detach", "dropout", "alpha_dropout", "feature_dropout"),
    *("feature_alpha_dropout", "lift_fresh_copy"),
)


def _unary(op: str) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        x = next(iter(a.values()))
        if a.get("decimals"):
            raise NotWritten("rounding to decimals")
        if op in ("Not", "Abs", "Neg", "Sign", "Relu", "Round", "Floor", "Ceil"):
            if op == "Not" and x.dtype != torch.bool:
                raise NotWritten("a bitwise operation on numbers")
            return w.node(op, w.name(x, torch.bool if op == "Not" else None))
        return w.node(op, w.name(x, torch.float32 if op == "IsNaN" else result.dtype))

    return lower


def _binary(op: str) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        x, y = list(a.values())[:2]
        more = {"fmod": 1} if op == "Mod" else {}
        return w.node(op, w.operand(x, result.dtype), w.operand(y, result.dtype), **more)

    return lower


def _compared(op: str, turned: bool) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        x, y = list(a.values())[:2]
        common = torch.result_type(x.ghosts[0], y.ghosts[0] if isinstance(y, Value) else y)
        if common == torch.bool and op != "Equal":
            common = torch.int32
        found = w.node(op, w.operand(x, common), w.operand(y, common))
        return w.node("Not", found) if turned else found

    return lower


def _logical(op: str, bitwise: bool) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        x, y = list(a.values())[:2]
        if bitwise and result.dtype != torch.bool:
            raise NotWritten("a bitwise operation on numbers")
        return w.node(op, w.operand(x, torch.bool), w.operand(y, torch.bool))

    return lower


def _same(w: Writer, a: Args, result: Value) -> str:
    if a.get("train"):
        raise NotWritten("dropout of a network in training")
    return w.node("Identity", w.name(next(iter(a.values()))))


def _cast(w: Writer, a: Args, result: Value) -> str:
    x = next(iter(a.values()))
    return w.node("Identity", w.name(x)) if x.dtype == result.dtype else w.name(x, result.dtype)


def _added(op: str, turned: bool = False) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        x, y = list(a.values())[:2]
        if turned:  # other - alpha * self
            x, y = y, x
        first, second = w.operand(x, result.dtype), w.operand(y, result.dtype)
        if a.get("alpha", 1) != 1:
            second = w.node("Mul", second, w.number(a["alpha"], result.dtype))
        return w.node(op, first, second)

    return lower


def _divided(w: Writer, a: Args, result: Value) -> str:
    x, y = list(a.values())[:2]
    if not result.dtype.is_floating_point:
        raise NotWritten("a division of whole numbers")
    found = w.node("Div", w.operand(x, result.dtype), w.operand(y, result.dtype))
    mode = a.get("rounding_mode")
    if mode == "floor":
        return w.node("Floor", found)
    if mode == "trunc":
        raise NotWritten("a division that truncates")
    return found


def _power(w: Writer, a: Args, result: Value) -> str:
    x, exponent = w.name(a["self"], result.dtype), a["exponent"]
    if exponent == 2:
        return w.node("Mul", x, x)
    if exponent == 0.5:
        return w.node("Sqrt", x)
    return w.node("Pow", x, w.number(exponent, result.dtype))


def _clipped(low: str, high: str) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        bounds = [a.get(low), a.get(high)]
        if any(isinstance(b, Value) for b in bounds):
            raise NotWritten("bounds that are tensors")
        names = ["" if b is None else w.number(b, result.dtype) for b in bounds]
        while names and not names[-1]:
            names.pop()
        return w.node("Clip", w.name(a["self"], result.dtype), *names)

    return lower


def _relu6(w: Writer, a: Args, result: Value) -> str:
    zero, six = w.number(0, result.dtype), w.number(6, result.dtype)
    return w.node("Clip", w.name(a["self"]), zero, six)


def _silu(w: Writer, a: Args, result: Value) -> str:
    x = w.name(a["self"])
    return w.node("Mul", x, w.node("Sigmoid", x))


def _hardsigmoid(w: Writer, a: Args, result: Value) -> str:
    return w.node("HardSigmoid", w.name(a["self"]), alpha=1 / 6, beta=0.5)


def _gelu(w: Writer, a: Args, result: Value) -> str:
    return w.node("Gelu", w.name(a["self"]), approximate=a["approximate"])


def _elu(w: Writer, a: Args, result: Value) -> str:
    if a["scale"] != 1 or a["input_scale"] != 1:
        raise NotWritten("an ELU of other scales")
    return w.node("Elu", w.name(a["self"]), alpha=float(a["alpha"]))


def _celu(w: Writer, a: Args, result: Value) -> str:
    return w.node("Celu", w.name(a["self"]), alpha=float(a["alpha"]))


def _selu(w: Writer, a: Args, result: Value) -> str:
    return w.node("Selu", w.name(a["self"]), alpha=1.6732632423543772, gamma=1.0507009873554805)


def _leaky(w: Writer, a: Args, result: Value) -> str:
    return w.node("LeakyRelu", w.name(a["self"]), alpha=float(a["negative_slope"]))


def _prelu(w: Writer, a: Args, result: Value) -> str:
    x, slope = a["self"], a["weight"]
    count = slope.size(0)
    dims = [(0, count), *[(0, 1)] * max(0, x.ndim - 2)]
    return w.node("PRelu", w.name(x), w.reshaped(w.name(slope), dims))


def _softplus(w: Writer, a: Args, result: Value) -> str:
    beta, x = a["beta"], w.name(a["self"])
    if beta == 1:
        return w.node("Softplus", x)
    scale = w.number(beta, result.dtype)
    return w.node("Div", w.node("Softplus", w.node("Mul", x, scale)), scale)


def _log_sigmoid(w: Writer, a: Args, result: Value) -> str:
    return w.node("Neg", w.node("Softplus", w.node("Neg", w.name(a["self"]))))


def _shrunk(soft: bool) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        much = float(a["lambd"])
        return w.node("Shrink", w.name(a["self"]), lambd=much, bias=much if soft else 0.0)

    return lower


def _threshold(w: Writer, a: Args, result: Value) -> str:
    x = w.name(a["self"])
    over = w.node("Greater", x, w.number(a["threshold"], result.dtype))
    return w.node("Where", over, x, w.number(a["value"], result.dtype))


def _of_root(w: Writer, a: Args, result: Value) -> str:
    return w.node("Reciprocal", w.node("Sqrt", w.name(a["self"], result.dtype)))


def _squared(w: Writer, a: Args, result: Value) -> str:
    x = w.name(a["self"])
    return w.node("Mul", x, x)


def _where(w: Writer, a: Args, result: Value) -> str:
    condition, x, y = list(a.values())[:3]
    return w.node(
        "Where",
        w.name(condition, torch.bool),
        w.operand(x, result.dtype),
        w.operand(y, result.dtype),
    )


def _masked(w: Writer, a: Args, result: Value) -> str:
    mask, value = w.name(a["mask"], torch.bool), w.operand(a["value"], result.dtype)
    return w.node("Where", mask, value, w.name(a["self"]))


def _blend(w: Writer, a: Args, result: Value) -> str:
    x, end = w.name(a["self"]), w.name(a["end"])
    step = w.node("Mul", w.node("Sub", end, x), w.number(a["weight"], result.dtype))
    return w.node("Add", x, step)


LOWERINGS: dict[str, Lowering] = {
    **{f"aten.{name}.default": _unary(op) for name, op in _UNARY.items()},
    **{f"aten.{name}": _binary(op) for name, op in _BINARY.items()},
    **{
        f"aten.{name}.{kind}": _compared(op, turned)
        for name, (op, turned) in _COMPARED.items()
        for kind in ("Scalar", "Tensor")
    },
    **{f"aten.{name}.default": _logical(op, False) for name, op in _LOGICAL.items()},
    **{f"aten.{name}.Tensor": _logical(op, True) for name, op in _BITWISE.items()},
    **{f"aten.{name}.default": _same for name in _SAME},
    **{f"aten.{n}": _cast for n in ("to.dtype", "to.device", "to.dtype_layout")},
    "aten._to_copy.default": _cast,
    "aten.type_as.default": _cast,
    "aten.add.Tensor": _added("Add"),
    "aten.sub.Tensor": _added("Sub"),
    "aten.rsub.Scalar": _added("Sub", turned=True),
    "aten.div.Tensor": _divided,
    "aten.div.Tensor_mode": _divided,
    "aten.pow.Tensor_Scalar": _power,
    "aten.clamp.default": _clipped("min", "max"),
    "aten.clamp_min.default": _clipped("min", "none"),
    "aten.clamp_max.default": _clipped("none", "max"),
    "aten.hardtanh.default": _clipped("min_val", "max_val"),
    "aten.relu6.default": _relu6,
    "aten.silu.default": _silu,
    "aten.hardsigmoid.default": _hardsigmoid,
    "aten.gelu.default": _gelu,
    "aten.elu.default": _elu,
    "aten.celu.default": _celu,
    "aten.selu.default": _selu,
    "aten.leaky_relu.default": _leaky,
    "aten.prelu.default": _prelu,
    "aten.softplus.default": _softplus,
    "aten.log_sigmoid.default": _log_sigmoid,
    "aten.softshrink.default": _shrunk(True),
    "aten.hardshrink.default": _shrunk(False),
    "aten.threshold.default": _threshold,
    "aten.rsqrt.default": _of_root,
    "aten.square.default": _squared,
    **{f"aten.where.{k}": _where for k in ("self", "Scalar", "ScalarOther", "ScalarSelf")},
    "aten.masked_fill.Scalar": _masked,
    "aten.lerp.Scalar": _blend,
}
