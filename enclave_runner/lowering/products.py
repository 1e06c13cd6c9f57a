"""Products of matrices, attention, and what is taken over dimensions: sums, means, softmax."""

from __future__ import annotations

import math
from typing import Any

import torch

from .pointwise import Args, Lowering
from .writer import NotWritten, Value, Writer


def _transposed(w: Writer, x: Value) -> str:
    """The last two dimensions exchanged; of a constant, here."""
    if x.constant is not None:
        return w.stored(x.constant.transpose(-1, -2).contiguous())
    order = list(range(x.ndim))
    order[-1], order[-2] = order[-2], order[-1]
    return w.node("Transpose", w.name(x), perm=order)


def _linear(w: Writer, a: Args, result: Value) -> str:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    if x.ndim == 2 and weight.ndim == 2:
        return w.node(
            "Gemm", w.name(x), w.name(weight), *([] if bias is None else [w.name(bias)]), transB=1
        )
    if weight.ndim != 2:
        raise NotWritten("a linear layer of one row")
    found = w.node("MatMul", w.name(x), _transposed(w, weight))
    return found if bias is None else w.node("Add", found, w.name(bias))


def _product(w: Writer, a: Args, result: Value) -> str:
    x, y = list(a.values())[:2]
    if not result.dtype.is_floating_point:
        raise NotWritten("a product of matrices of whole numbers")
    return w.node("MatMul", w.name(x), w.name(y))


def _added_product(w: Writer, a: Args, result: Value) -> str:
    first, second = list(a.values())[1:3]
    found = w.node("MatMul", w.name(first), w.name(second))
    if a["alpha"] != 1:
        found = w.node("Mul", found, w.number(a["alpha"], result.dtype))
    added = w.name(a["self"])
    if a["beta"] != 1:
        added = w.node("Mul", added, w.number(a["beta"], result.dtype))
    return w.node("Add", found, added)


def _attention(w: Writer, a: Args, result: Value) -> str:
    query, key, value, mask = a["query"], a["key"], a["value"], a["attn_mask"]
    if a["is_causal"] or a.get("enable_gqa") or a["dropout_p"]:
        raise NotWritten("attention that is causal, of grouped queries or with dropout")
    scale = 1 / math.sqrt(query.size(-1)) if a["scale"] is None else a["scale"]
    scaled = w.node("Mul", w.name(query), w.number(scale, query.dtype))
    scores = w.node("MatMul", scaled, _transposed(w, key))
    if mask is not None and mask.dtype == torch.bool:
        least = w.number(-math.inf, query.dtype)
        scores = w.node("Where", w.name(mask), scores, least)
    elif mask is not None:
        scores = w.node("Add", scores, w.name(mask))
    return w.node("MatMul", w.node("Softmax", scores, axis=-1), w.name(value))


def _softmax(op: str) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        return w.node(op, w.name(a["self"], result.dtype), axis=a["dim"])

    return lower


def _axes(a: Args, x: Value) -> list[int]:
    dims = a.get("dim")
    if dims is None or dims == []:
        return list(range(x.ndim))
    return sorted(d % x.ndim for d in ([dims] if isinstance(dims, int) else dims))


def _reduced(op: str) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        x = a["self"]
        axes, keep = _axes(a, x), bool(a.get("keepdim", False))
        name = w.name(x, result.dtype)
        if op == "ReduceMean" and x.ndim == 4 and axes == [2, 3] and x.dtype == torch.float32:
            pooled = w.node("GlobalAveragePool", name)
            return pooled if keep else w.reshaped(pooled, result.dims)
        return w.node(op, name, w.numbers(axes), keepdims=int(keep))

    return lower


def _extreme(op: str) -> Lowering:
    """Values and places of the largest or smallest along one dimension."""

    def lower(w: Writer, a: Args, result: Any) -> list[str]:
        x, keep = w.name(a["self"]), int(a["keepdim"])
        dim = a["dim"] % a["self"].ndim
        values = w.node(f"Reduce{op}", x, w.numbers([dim]), keepdims=keep)
        return [values, w.node(f"Arg{op}", x, axis=dim, keepdims=keep)]

    return lower


def _place(op: str) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        if a["dim"] is None:
            raise NotWritten("the place of the largest of all")
        dim = a["dim"] % a["self"].ndim
        return w.node(op, w.name(a["self"]), axis=dim, keepdims=int(a["keepdim"]))

    return lower


def _variance(root: bool) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        x = a["self"]
        axes, keep = _axes(a, x), int(bool(a.get("keepdim", False)))
        correction = a.get("correction", int(a.get("unbiased", True)))
        correction = 1 if correction is None else correction
        count = math.prod(x.size(d) for d in axes)
        if count <= correction:
            raise NotWritten("a variance of too few values")
        numbers = w.numbers(axes)
        away = w.node("Sub", w.name(x), w.node("ReduceMean", w.name(x), numbers, keepdims=1))
        total = w.node("ReduceSum", w.node("Mul", away, away), numbers, keepdims=keep)
        found = w.node("Div", total, w.number(count - correction, result.dtype))
        return w.node("Sqrt", found) if root else found

    return lower


def _norm(w: Writer, a: Args, result: Value) -> str:
    ops = {1: "ReduceL1", 2: "ReduceL2"}
    if a["ord"] not in ops:
        raise NotWritten(f"a norm of order {a['ord']}")
    x = a["self"]
    return w.node(
        ops[a["ord"]], w.name(x, result.dtype), w.numbers(_axes(a, x)), keepdims=int(a["keepdim"])
    )


LOWERINGS: dict[str, Lowering] = {
    "aten.linear.default": _linear,
    **{f"aten.{n}.default": _product for n in ("matmul", "bmm", "mm", "mv", "dot")},
    "aten.addmm.default": _added_product,
    "aten.baddbmm.default": _added_product,
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.softmax.int": _softmax("Softmax"),
    "aten.log_softmax.int": _softmax("LogSoftmax"),
    "aten.mean.dim": _reduced("ReduceMean"),
    "aten.mean.default": _reduced("ReduceMean"),
    "aten.sum.dim_IntList": _reduced("ReduceSum"),
    "aten.sum.default": _reduced("ReduceSum"),
    "aten.amax.default": _reduced("ReduceMax"),
    "aten.amin.default": _reduced("ReduceMin"),
    "aten.max.default": _reduced("ReduceMax"),
    "aten.min.default": _reduced("ReduceMin"),
    "aten.prod.dim_int": _reduced("ReduceProd"),
    "aten.logsumexp.default": _reduced("ReduceLogSumExp"),
    "aten.max.dim": _extreme("Max"),
    "aten.min.dim": _extreme("Min"),
    "aten.argmax.default": _place("ArgMax"),
    "aten.argmin.default": _place("ArgMin"),
    "aten.var.correction": _variance(False),
    "aten.var.dim": _variance(False),
    "aten.std.correction": _variance(True),
    "aten.std.dim": _variance(True),
    "aten.linalg_vector_norm.default": _norm,
}
