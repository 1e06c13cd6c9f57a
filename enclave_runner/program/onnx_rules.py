"""What each allowed ONNX operator makes of shapes: the operators without a rule are refused.

An operator looks at nothing but its arguments' elements, and none here takes a graph, a path or
code. Where a shape depends on numbers (a reshape, a repetition), these must be known beforehand:
weights, or what is worked out from the shapes of others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .onnx_file import BOOL, INT64, Node

MS, NCHWC = "com.microsoft", "com.microsoft.nchwc"
_BLOCK = 16  # the most channels that a layout of blocks rounds up to


@dataclass(frozen=True)
class Val:
    """A value: shape, type, and its elements where they are few whole numbers and known."""

    shape: tuple[int, ...]
    type: int
    ints: tuple[int, ...] | None = None


class Unfit(Exception):
    """A node whose arguments do not fit each other, or that says what its rule does not know."""


Rule = Callable[[Node, list[Any]], list[Val]]


def _known(value: Val | None) -> tuple[int, ...]:
    if value is None or value.ints is None:
        raise Unfit("its shape is not known beforehand")
    return value.ints


def _axis(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise Unfit("an axis that is none")
    return axis % ndim


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    ndim = max(map(len, shapes))
    found = []
    for sizes in zip(*((1,) * (ndim - len(s)) + s for s in shapes), strict=True):
        large = {s for s in sizes if s != 1}
        if len(large) > 1:
            raise Unfit("shapes that do not go together")
        found.append(large.pop() if large else 1)
    return tuple(found)


def _same(node: Node, ins: list[Any]) -> list[Val]:
    return [Val(ins[0].shape, ins[0].type, ins[0].ints if node.op == "Identity" else None)]


def _together(result: int | None) -> Rule:
    def rule(node: Node, ins: list[Any]) -> list[Val]:
        shape = _broadcast([v.shape for v in ins])
        ints = None
        if node.op == "Mul" and all(v.ints is not None for v in ins):
            a, b = ins[0].ints, ins[1].ints
            if len(a) == len(b) == 1:
                ints = (a[0] * b[0],)
        return [Val(shape, result or ins[0].type, ints)]

    return rule


def _where(node: Node, ins: list[Any]) -> list[Val]:
    return [Val(_broadcast([v.shape for v in ins]), ins[1].type)]


def _cast(node: Node, ins: list[Any]) -> list[Val]:
    to = node.attributes["to"]
    return [Val(ins[0].shape, to, ins[0].ints if to == INT64 else None)]


def _windowed(size: int, reach: int, stride: int, pads: int) -> int:
    if stride < 1 or pads < 0 or size + pads < reach:
        raise Unfit("a window that does not fit")
    return (size + pads - reach) // stride + 1


def _spatial(node: Node, x: Val, kernel: Sequence[int]) -> list[int]:
    """Sizes behind a window that slides over all dimensions but the first two."""
    a, count = node.attributes, len(kernel)
    if a.get("auto_pad", "NOTSET") != "NOTSET" or a.get("ceil_mode", 0):
        raise Unfit("windows that fit themselves")
    strides, dilations = a.get("strides", [1] * count), a.get("dilations", [1] * count)
    pads = a.get("pads", [0] * 2 * count)
    if {len(strides), len(dilations), len(x.shape) - 2} != {count} or len(pads) != 2 * count:
        raise Unfit("windows of another dimension")
    if any(n < 0 for n in pads) or any(n < 1 for n in (*dilations, *kernel)):
        raise Unfit("windows of no size")
    return [
        _windowed(
            x.shape[2 + i],
            dilations[i] * (kernel[i] - 1) + 1,
            strides[i],
            pads[i] + pads[count + i],
        )
        for i in range(count)
    ]


def _conv(node: Node, ins: list[Any]) -> list[Val]:
    x, weight = ins[0], ins[1]
    kernel = weight.shape[2:]
    if tuple(node.attributes.get("kernel_shape", kernel)) != kernel:
        raise Unfit("a kernel that is not its weights'")
    if node.attributes.get("group", 1) < 1:
        raise Unfit("no groups")
    shape = (x.shape[0], weight.shape[0], *_spatial(node, x, kernel))
    if len(ins) > 3 and ins[3] is not None and ins[3].shape != shape:
        raise Unfit("a sum of other shape")
    return [Val(shape, x.type)]


def _conv_transpose(node: Node, ins: list[Any]) -> list[Val]:
    x, weight, a = ins[0], ins[1], node.attributes
    kernel, count = weight.shape[2:], len(weight.shape) - 2
    if a.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in a:
        raise Unfit("windows that fit themselves")
    strides, dilations = a.get("strides", [1] * count), a.get("dilations", [1] * count)
    pads, more = a.get("pads", [0] * 2 * count), a.get("output_padding", [0] * count)
    if {len(strides), len(dilations), len(more), len(x.shape) - 2} != {count}:
        raise Unfit("windows of another dimension")
    sizes = [
        strides[i] * (x.shape[2 + i] - 1)
        + more[i]
        + dilations[i] * (kernel[i] - 1)
        + 1
        - pads[i]
        - pads[count + i]
        for i in range(count)
    ]
    if min(sizes) < 1 or min(strides) < 1:
        raise Unfit("windows of no size")
    return [Val((x.shape[0], weight.shape[1] * a.get("group", 1), *sizes), x.type)]


def _pool(node: Node, ins: list[Any]) -> list[Val]:
    x = ins[0]
    if len(node.outputs) > 1:
        raise Unfit("places of a pool")
    return [Val((*x.shape[:2], *_spatial(node, x, node.attributes["kernel_shape"])), x.type)]


def _global_pool(node: Node, ins: list[Any]) -> list[Val]:
    x = ins[0]
    return [Val((*x.shape[:2], *[1] * (len(x.shape) - 2)), x.type)]


def _matmul(node: Node, ins: list[Any]) -> list[Val]:
    a, b = ins[0].shape, ins[1].shape
    at = node.attributes
    if any(at.get(k, 0) for k in ("transBatchA", "transBatchB")) or min(len(a), len(b)) < 1:
        raise Unfit("a product of odd matrices")
    if at.get("transA", 0):
        a = (*a[:-2], a[-1], a[-2])
    if at.get("transB", 0):
        b = (*b[:-2], b[-1], b[-2])
    left = (1, *a) if len(a) == 1 else a
    right = (*b, 1) if len(b) == 1 else b
    if left[-1] != right[-2]:
        raise Unfit("a product of matrices that do not fit")
    shape = [*_broadcast([left[:-2], right[:-2]]), left[-2], right[-1]]
    if len(b) == 1:
        del shape[-1]
    if len(a) == 1:
        del shape[-1 if len(b) == 1 else -2]
    return [Val(tuple(shape), ins[0].type)]


def _gemm(node: Node, ins: list[Any]) -> list[Val]:
    if len(ins[0].shape) != 2 or len(ins[1].shape) != 2:
        raise Unfit("a product of what is no matrix")
    found = _matmul(node, ins)[0]
    if (
        len(ins) > 2
        and ins[2] is not None
        and _broadcast([found.shape, ins[2].shape]) != found.shape
    ):
        raise Unfit("a sum of other shape")
    return [found]


def _reshape(node: Node, ins: list[Any]) -> list[Val]:
    x, wanted = ins[0], list(_known(ins[1]))
    if node.attributes.get("allowzero", 0) or wanted.count(-1) > 1 or min(wanted, default=0) < -1:
        raise Unfit("a shape that is none")
    total = math.prod(x.shape)
    shape = [x.shape[i] if n == 0 and i < len(x.shape) else n for i, n in enumerate(wanted)]
    rest = math.prod(n for n in shape if n != -1)
    if rest < 1 or total % rest:
        raise Unfit("a shape of other size")
    shape = [total // rest if n == -1 else n for n in shape]
    if math.prod(shape) != total:
        raise Unfit("a shape of other size")
    return [Val(tuple(shape), x.type, x.ints)]


def _transpose(node: Node, ins: list[Any]) -> list[Val]:
    x = ins[0]
    order = node.attributes.get("perm", list(range(len(x.shape)))[::-1])
    if sorted(order) != list(range(len(x.shape))):
        raise Unfit("an order that is none")
    return [Val(tuple(x.shape[i] for i in order), x.type)]


def _concat(node: Node, ins: list[Any]) -> list[Val]:
    axis = _axis(node.attributes["axis"], len(ins[0].shape))
    rests = {v.shape[:axis] + v.shape[axis + 1 :] for v in ins}
    if len(rests) > 1:
        raise Unfit("shapes that do not go together")
    shape = list(ins[0].shape)
    shape[axis] = sum(v.shape[axis] for v in ins)
    ints = None
    if len(shape) == 1 and all(v.ints is not None for v in ins):
        ints = tuple(n for v in ins for n in v.ints)
    return [Val(tuple(shape), ins[0].type, ints)]


def _slice(node: Node, ins: list[Any]) -> list[Val]:
    x, starts, ends = ins[0], _known(ins[1]), _known(ins[2])
    axes = _known(ins[3]) if len(ins) > 3 and ins[3] is not None else range(len(starts))
    steps = _known(ins[4]) if len(ins) > 4 and ins[4] is not None else (1,) * len(starts)
    shape = list(x.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step == 0:
            raise Unfit("a step of 0")
        axis = _axis(axis, len(shape))
        shape[axis] = len(range(*slice(start, _end(end, step), step).indices(shape[axis])))
    return [Val(tuple(shape), x.type)]


def _end(end: int, step: int) -> int | None:
    """None: as far as there is anything."""
    return None if step < 0 and end < -(1 << 31) else end


def _gather(node: Node, ins: list[Any]) -> list[Val]:
    x, index = ins[0], ins[1]
    axis = _axis(node.attributes.get("axis", 0), len(x.shape))
    ints = None
    if x.ints is not None and index.ints is not None and len(x.shape) == 1:
        ints = tuple(x.ints[_axis(i, len(x.ints))] for i in index.ints)
    return [Val((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]), x.type, ints)]


def _expand(node: Node, ins: list[Any]) -> list[Val]:
    wanted = _known(ins[1])
    if min(wanted, default=1) < 1:
        raise Unfit("a shape that is none")
    return [Val(_broadcast([ins[0].shape, wanted]), ins[0].type)]


def _tile(node: Node, ins: list[Any]) -> list[Val]:
    counts = _known(ins[1])
    if len(counts) != len(ins[0].shape) or min(counts, default=1) < 1:
        raise Unfit("a repetition that is none")
    return [Val(tuple(a * b for a, b in zip(ins[0].shape, counts, strict=True)), ins[0].type)]


def _pad(node: Node, ins: list[Any]) -> list[Val]:
    x, pads = ins[0], _known(ins[1])
    count = len(x.shape)
    if len(pads) != 2 * count or len(ins) > 3:
        raise Unfit("a padding that is none")
    shape = tuple(n + pads[i] + pads[count + i] for i, n in enumerate(x.shape))
    if min(shape, default=1) < 1:
        raise Unfit("a padding that leaves nothing")
    return [Val(shape, x.type)]


def _split(node: Node, ins: list[Any]) -> list[Val]:
    x, sizes = ins[0], _known(ins[1])
    axis = _axis(node.attributes.get("axis", 0), len(x.shape))
    if len(sizes) != len(node.outputs) or sum(sizes) != x.shape[axis] or min(sizes) < 0:
        raise Unfit("parts that do not add up")
    return [Val((*x.shape[:axis], n, *x.shape[axis + 1 :]), x.type) for n in sizes]


def _unsqueeze(node: Node, ins: list[Any]) -> list[Val]:
    x, axes = ins[0], _known(ins[1])
    count = len(x.shape) + len(axes)
    places = {_axis(a, count) for a in axes}
    rest = iter(x.shape)
    if len(places) != len(axes):
        raise Unfit("an axis twice")
    shape = tuple(1 if i in places else next(rest) for i in range(count))
    return [Val(shape, x.type, x.ints)]


def _squeeze(node: Node, ins: list[Any]) -> list[Val]:
    x = ins[0]
    places = {_axis(a, len(x.shape)) for a in _known(ins[1])}
    if any(x.shape[i] != 1 for i in places):
        raise Unfit("a dimension that is more than 1")
    return [Val(tuple(n for i, n in enumerate(x.shape) if i not in places), x.type, x.ints)]


def _reduced(node: Node, ins: list[Any]) -> list[Val]:
    x, keep = ins[0], node.attributes.get("keepdims", 1)
    if node.op.startswith("Arg"):
        axes: Sequence[int] = [node.attributes.get("axis", 0)]
    elif len(ins) > 1 and ins[1] is not None:
        axes = _known(ins[1])
    else:
        axes = node.attributes.get("axes", range(len(x.shape)))
    places = {_axis(a, len(x.shape)) for a in axes}
    shape = [1 if i in places else n for i, n in enumerate(x.shape)]
    if not keep:
        shape = [n for i, n in enumerate(shape) if i not in places]
    return [Val(tuple(shape), INT64 if node.op.startswith("Arg") else x.type)]


def _shape(node: Node, ins: list[Any]) -> list[Val]:
    shape = ins[0].shape
    start, end = node.attributes.get("start", 0), node.attributes.get("end", len(shape))
    found = shape[start:end]
    return [Val((len(found),), INT64, found)]


def _resize(node: Node, ins: list[Any]) -> list[Val]:
    x = ins[0]
    sizes = ins[3] if len(ins) > 3 else None
    if len(ins) > 1 and ins[1] is not None and ins[1].shape not in ((0,),):
        raise Unfit("a region of a resize")
    if sizes is not None or len(ins) < 3 or ins[2] is None or "axes" in node.attributes:
        raise Unfit("a resize to sizes")
    scales = ins[2]
    if not isinstance(scales, Scaled) or len(scales.factors) != len(x.shape):
        raise Unfit("its shape is not known beforehand")
    shape = tuple(int(n * f) for n, f in zip(x.shape, scales.factors, strict=True))
    if min(shape) < 1:
        raise Unfit("a resize to nothing")
    return [Val(shape, x.type)]


@dataclass(frozen=True)
class Scaled(Val):
    """A value of a few floats that are known."""

    factors: tuple[float, ...] = ()


def _norm_of(count: int) -> Rule:
    """Norms: the first input's shape, as many outputs as were asked for, at most `count`."""

    def rule(node: Node, ins: list[Any]) -> list[Val]:
        if len(node.outputs) > count:
            raise Unfit("statistics of a norm")
        found = _same(node, ins)[0]
        last = replace(found, ints=None)
        names = [n for n in node.outputs if n]
        if node.op in _SKIPS:
            shape = _broadcast([v.shape for v in ins[:2]])
            last = replace(last, shape=shape)
            if len(node.outputs) > 1 and any(node.outputs[1:3]):
                raise Unfit("statistics of a norm")
            return [last] * len(node.outputs)
        if len(names) > 1:
            raise Unfit("statistics of a norm")
        return [last]

    return rule


_SKIPS = ("SkipLayerNormalization",)


def _depth_to_space(node: Node, ins: list[Any]) -> list[Val]:
    n, c, h, w = ins[0].shape
    block = node.attributes["blocksize"]
    if block < 1 or c % (block * block):
        raise Unfit("blocks that do not fit")
    return [Val((n, c // block**2, h * block, w * block), ins[0].type)]


def _space_to_depth(node: Node, ins: list[Any]) -> list[Val]:
    n, c, h, w = ins[0].shape
    block = node.attributes["blocksize"]
    if block < 1 or h % block or w % block:
        raise Unfit("blocks that do not fit")
    return [Val((n, c * block**2, h // block, w // block), ins[0].type)]


def _into_blocks(node: Node, ins: list[Any]) -> list[Val]:
    x = ins[0]
    if len(x.shape) < 3:
        raise Unfit("another layout")
    last = node.attributes.get("channels_last", 0)
    batch, *rest = x.shape
    channels = rest.pop() if last else rest.pop(0)
    return [Val((batch, -(-channels // _BLOCK) * _BLOCK, *rest), x.type)]


def _out_of_blocks(node: Node, ins: list[Any]) -> list[Val]:
    x, channels = ins[0], node.attributes["channels"]
    if not 1 <= channels <= x.shape[1]:
        raise Unfit("another layout")
    batch, _, *rest = x.shape
    last = node.attributes.get("channels_last", 0)
    return [Val((batch, *rest, channels) if last else (batch, channels, *rest), x.type)]


def _scaled_blocks(node: Node, ins: list[Any]) -> list[Val]:
    x, scales = ins[0], node.attributes["scales"]
    if len(scales) != len(x.shape) or min(scales) < 1 or list(scales[:2]) != [1, 1]:
        raise Unfit("scales that are none")
    return [Val(tuple(int(n * s) for n, s in zip(x.shape, scales, strict=True)), x.type)]


_POINTWISE = """
Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid
HardSwish Identity LeakyRelu Log LogSoftmax Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid
Sign Sin Sinh Softmax Softplus Sqrt Tan Tanh InstanceNormalization
"""
_BINARY = "Add Sub Mul Div Min Max Mod Pow PRelu And Or Xor"
_COMPARED = "Equal Greater GreaterOrEqual Less LessOrEqual"
RULES: dict[tuple[str, str], Rule] = {
    **{("", op): _same for op in _POINTWISE.split()},
    **{("", op): _together(None) for op in _BINARY.split()},
    **{("", op): _together(BOOL) for op in _COMPARED.split()},
    ("", "IsNaN"): lambda node, ins: [Val(ins[0].shape, BOOL)],
    ("", "Where"): _where,
    ("", "Cast"): _cast,
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _conv_transpose,
    ("", "MaxPool"): _pool,
    ("", "AveragePool"): _pool,
    ("", "GlobalAveragePool"): _global_pool,
    ("", "GlobalMaxPool"): _global_pool,
    ("", "BatchNormalization"): _norm_of(1),
    ("", "LayerNormalization"): _norm_of(3),
    ("", "SimplifiedLayerNormalization"): _norm_of(2),
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "Reshape"): _reshape,
    ("", "Transpose"): _transpose,
    ("", "Concat"): _concat,
    ("", "Slice"): _slice,
    ("", "Gather"): _gather,
    ("", "Expand"): _expand,
    ("", "Tile"): _tile,
    ("", "Pad"): _pad,
    ("", "Split"): _split,
    ("", "Unsqueeze"): _unsqueeze,
    ("", "Squeeze"): _squeeze,
    ("", "Shape"): _shape,
    ("", "Resize"): _resize,
    ("", "DepthToSpace"): _depth_to_space,
    ("", "SpaceToDepth"): _space_to_depth,
    **{
        ("", f"Reduce{kind}"): _reduced
        for kind in ["L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
    },
    ("", "ArgMax"): _reduced,
    ("", "ArgMin"): _reduced,
    (MS, "FusedConv"): _conv,
    (MS, "FusedGemm"): _gemm,
    (MS, "FusedMatMul"): _matmul,
    (MS, "Gelu"): _same,
    (MS, "FastGelu"): _same,
    (MS, "BiasGelu"): _same,
    (MS, "QuickGelu"): _same,
    (MS, "SkipLayerNormalization"): _norm_of(4),
    (NCHWC, "Conv"): _conv,
    (NCHWC, "MaxPool"): _pool,
    (NCHWC, "AveragePool"): _pool,
    (NCHWC, "GlobalAveragePool"): _global_pool,
    (NCHWC, "GlobalMaxPool"): _global_pool,
    (NCHWC, "ReorderInput"): _into_blocks,
    (NCHWC, "ReorderOutput"): _out_of_blocks,
    (NCHWC, "Upsample"): _scaled_blocks,
}
