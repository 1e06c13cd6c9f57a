"""Convolutions, pools, norms and resizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .pointwise import Args, Lowering
from .writer import NotWritten, Value, Writer


def _pair(value: Any, count: int) -> list[int]:
    found = [value] if isinstance(value, int) else list(value)
    return found * count if len(found) == 1 else found


def _spatial(x: Value, count: int) -> list[int]:
    """The last sizes of a batch of maps."""
    if x.ndim != count + 2:
        raise NotWritten("a map without a batch")
    return [x.size(i) for i in range(2, count + 2)]


def _convolved(count: int) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        x, weight, bias = a["input"], a["weight"], a["bias"]
        _spatial(x, count)
        kernel = [weight.size(i) for i in range(2, count + 2)]
        dilation, padding = _pair(a["dilation"], count), a["padding"]
        if padding == "same":
            totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            pads = [*(t // 2 for t in totals), *(t - t // 2 for t in totals)]
        elif padding == "valid":
            pads = [0] * 2 * count
        else:
            pads = _pair(padding, count) * 2
        return w.node(
            "Conv",
            w.name(x),
            w.name(weight),
            *([] if bias is None else [w.name(bias)]),
            kernel_shape=kernel,
            strides=_pair(a["stride"], count),
            dilations=dilation,
            pads=pads,
            group=a["groups"],
        )

    return lower


def _transposed(count: int) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        x, weight, bias = a["input"], a["weight"], a["bias"]
        _spatial(x, count)
        return w.node(
            "ConvTranspose",
            w.name(x),
            w.name(weight),
            *([] if bias is None else [w.name(bias)]),
            kernel_shape=[weight.size(i) for i in range(2, count + 2)],
            strides=_pair(a["stride"], count),
            dilations=_pair(a["dilation"], count),
            pads=_pair(a["padding"], count) * 2,
            output_padding=_pair(a["output_padding"], count),
            group=a["groups"],
        )

    return lower


def _windows(a: Args, x: Value, result: Value, count: int) -> dict[str, Any]:
    """Kernel, strides and pads of a pool; a rounded-up size becomes padding at the end."""
    sizes, wanted = _spatial(x, count), _spatial(result, count)
    kernel = _pair(a["kernel_size"], count)
    strides = _pair(a["stride"], count) if a["stride"] else kernel
    dilation = _pair(a.get("dilation", 1), count)
    before = _pair(a["padding"], count)
    after = []
    for i in range(count):
        reach = dilation[i] * (kernel[i] - 1) + 1
        after.append(max(0, (wanted[i] - 1) * strides[i] + reach - sizes[i] - before[i]))
    return {"kernel_shape": kernel, "strides": strides, "pads": [*before, *after]} | (
        {"dilations": dilation} if "dilation" in a else {}
    )


def _max_pool(count: int) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        return w.node("MaxPool", w.name(a["self"]), **_windows(a, a["self"], result, count))

    return lower


def _avg_pool(count: int) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        windows = _windows(a, a["self"], result, count)
        pads = windows["pads"]
        if a.get("divisor_override") is not None:
            raise NotWritten("a pool with a divisor of its own")
        counted = any(pads) and a["count_include_pad"]
        given = _pair(a["padding"], count)
        if counted and any(p > g for p, g in zip(pads[count:], given, strict=True)):
            raise NotWritten("a pool that counts its padding and rounds its size up")
        if counted:
            windows["pads"] = given * 2
        return w.node(
            "AveragePool", w.name(a["self"]), count_include_pad=int(bool(counted)), **windows
        )

    return lower


def _shares(size: int, wanted: int) -> torch.Tensor:
    """Which rows an adaptive pool averages, (wanted, size)."""
    found = np.zeros((wanted, size), np.float32)
    for i in range(wanted):
        first, last = i * size // wanted, -(-(i + 1) * size // wanted)
        found[i, first:last] = 1 / (last - first)
    return torch.from_numpy(found)


def _adaptive(op: str, count: int) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        x = a["self"]
        sizes, wanted = _spatial(x, count), _spatial(result, count)
        name = w.name(x)
        if sizes == wanted:
            return w.node("Identity", name)
        if all(n == 1 for n in wanted):
            return w.node(f"Global{op}", name)
        if all(s % n == 0 for s, n in zip(sizes, wanted, strict=True)):
            kernel = [s // n for s, n in zip(sizes, wanted, strict=True)]
            return w.node(op, name, kernel_shape=kernel, strides=kernel)
        if op != "AveragePool" or count != 2:
            raise NotWritten("an adaptive pool of windows of several sizes")
        down = w.stored(_shares(sizes[0], wanted[0]))
        across = w.stored(_shares(sizes[1], wanted[1]).T.contiguous())
        return w.node("MatMul", down, w.node("MatMul", name, across))

    return lower


def _adaptive_with_places(count: int) -> Lowering:
    lower = _adaptive("MaxPool", count)

    def with_places(w: Writer, a: Args, result: Any) -> list[str]:
        return [str(lower(w, a, result[0])), ""]

    return with_places


def _or(w: Writer, value: Value | None, count: int, fill: float) -> str:
    """A norm's own factors, or those that change nothing."""
    return w.name(value) if value is not None else w.stored(torch.full((count,), fill))


def _batch_norm(w: Writer, a: Args, result: Value) -> str:
    x = a["input"]
    if a.get("training") or a["running_mean"] is None:
        raise NotWritten("a batch norm that measures its batch")
    count = x.size(1)
    return w.node(
        "BatchNormalization",
        w.name(x),
        _or(w, a["weight"], count, 1.0),
        _or(w, a["bias"], count, 0.0),
        w.name(a["running_mean"]),
        w.name(a["running_var"]),
        epsilon=float(a["eps"]),
    )


def _batch_norm_alone(w: Writer, a: Args, result: Any) -> list[str]:
    return [_batch_norm(w, a, result[0]), "", ""]


def _layer_norm(w: Writer, a: Args, result: Value) -> str:
    shape = list(a["normalized_shape"])
    weight = w.name(a["weight"]) if a["weight"] is not None else w.stored(torch.ones(shape))
    bias = [] if a["bias"] is None else [w.name(a["bias"])]
    return w.node(
        "LayerNormalization",
        w.name(a["input"]),
        weight,
        *bias,
        axis=-len(shape),
        epsilon=float(a["eps"]),
    )


def _group_norm(w: Writer, a: Args, result: Value) -> str:
    x, groups = a["input"], a["num_groups"]
    ones, zeros = w.stored(torch.ones(groups)), w.stored(torch.zeros(groups))
    parted = w.node("Reshape", w.name(x), w.numbers([0, groups, -1]))
    normed = w.node("InstanceNormalization", parted, ones, zeros, epsilon=float(a["eps"]))
    found = w.reshaped(normed, x.dims)
    dims = [(0, x.size(1)), *[(0, 1)] * (x.ndim - 2)]
    if a["weight"] is not None:
        found = w.node("Mul", found, w.reshaped(w.name(a["weight"]), dims))
    if a["bias"] is not None:
        found = w.node("Add", found, w.reshaped(w.name(a["bias"]), dims))
    return found


def _instance_norm(w: Writer, a: Args, result: Value) -> str:
    x = a["input"]
    if not a["use_input_stats"]:
        raise NotWritten("an instance norm of stored statistics")
    count = x.size(1)
    weight, bias = _or(w, a["weight"], count, 1.0), _or(w, a["bias"], count, 0.0)
    return w.node("InstanceNormalization", w.name(x), weight, bias, epsilon=float(a["eps"]))


def _rms_norm(w: Writer, a: Args, result: Value) -> str:
    x, count = w.name(a["input"]), len(a["normalized_shape"])
    eps = torch.finfo(result.dtype).eps if a["eps"] is None else a["eps"]
    axes = w.numbers(range(-count, 0))
    mean = w.node("ReduceMean", w.node("Mul", x, x), axes, keepdims=1)
    root = w.node("Sqrt", w.node("Add", mean, w.number(eps, result.dtype)))
    found = w.node("Div", x, root)
    return found if a["weight"] is None else w.node("Mul", found, w.name(a["weight"]))


def _resized(mode: str) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        x = a["input"]
        sizes, wanted = _spatial(x, 2), _spatial(result, 2)
        factors: Sequence[float] | None = a.get("scale_factors")
        if factors is not None and [int(s * f) for s, f in zip(sizes, factors, strict=True)] != [
            s * f for s, f in zip(sizes, factors, strict=True)
        ]:
            raise NotWritten("a resize whose factor does not fit the size")
        scales = torch.tensor(
            [1.0, 1.0, *(n / s for n, s in zip(wanted, sizes, strict=True))], dtype=torch.float32
        )
        if mode == "nearest":
            how: dict[str, Any] = {
                "coordinate_transformation_mode": "asymmetric",
                "nearest_mode": "floor",
            }
            if any(n % s for n, s in zip(wanted, sizes, strict=True)):
                raise NotWritten("a nearest-neighbour resize by no whole factor")
        else:
            corners = a["align_corners"]
            how = {"coordinate_transformation_mode": "align_corners" if corners else "half_pixel"}
        if mode == "cubic":
            how["cubic_coeff_a"] = -0.75
        return w.node("Resize", w.name(x), "", w.stored(scales), mode=mode, **how)

    return lower


def _pixel_shuffle(w: Writer, a: Args, result: Value) -> str:
    return w.node("DepthToSpace", w.name(a["self"]), blocksize=a["upscale_factor"], mode="CRD")


LOWERINGS: dict[str, Lowering] = {
    "aten.conv1d.default": _convolved(1),
    "aten.conv2d.default": _convolved(2),
    "aten.conv2d.padding": _convolved(2),
    "aten.conv_transpose1d.default": _transposed(1),
    "aten.conv_transpose2d.input": _transposed(2),
    "aten.max_pool1d.default": _max_pool(1),
    "aten.max_pool2d.default": _max_pool(2),
    "aten.avg_pool1d.default": _avg_pool(1),
    "aten.avg_pool2d.default": _avg_pool(2),
    "aten.avg_pool3d.default": _avg_pool(3),
    "aten.adaptive_avg_pool1d.default": _adaptive("AveragePool", 1),
    "aten.adaptive_avg_pool2d.default": _adaptive("AveragePool", 2),
    "aten.adaptive_max_pool1d.default": _adaptive_with_places(1),
    "aten.adaptive_max_pool2d.default": _adaptive_with_places(2),
    "aten.batch_norm.default": _batch_norm,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm_alone,
    "aten.layer_norm.default": _layer_norm,
    "aten.group_norm.default": _group_norm,
    "aten.instance_norm.default": _instance_norm,
    "aten.rms_norm.default": _rms_norm,
    "aten.upsample_nearest2d.vec": _resized("nearest"),
    "aten.upsample_bilinear2d.vec": _resized("linear"),
    "aten.upsample_bicubic2d.vec": _resized("cubic"),
    "aten.pixel_shuffle.default": _pixel_shuffle,
}
