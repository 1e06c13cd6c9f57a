"""Operators that move elements and change none: views, slices, joins, paddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .pointwise import Args, Lowering
from .writer import Grown, NotWritten, Value, Writer

_FAR = (1 << 63) - 1
# Whatever they are called with: the elements in their order, in another shape.
_VIEWS = (
    *("view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints"),
    *("unflatten.int", "squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default"),
    *("view_as.default", "reshape_as.default", "ravel.default"),
)


def _at(dim: int, ndim: int) -> int:
    return dim + ndim if dim < 0 else dim


def _view(w: Writer, a: Args, result: Value) -> str:
    return w.reshaped(w.name(next(iter(a.values()))), result.dims)


def _permuted(w: Writer, name: str, order: Sequence[int]) -> str:
    return w.node("Transpose", name, perm=list(order))


def _permute(w: Writer, a: Args, result: Value) -> str:
    x = a["self"]
    return _permuted(w, w.name(x), [_at(d, x.ndim) for d in a["dims"]])


def _swapped(w: Writer, a: Args, result: Value) -> str:
    x = a["self"]
    order = list(range(x.ndim))
    first, second = list(a.values())[1:3] if len(a) > 2 else (-2, -1)
    if x.ndim < 2:
        return w.node("Identity", w.name(x))
    i, j = _at(first, x.ndim), _at(second, x.ndim)
    order[i], order[j] = order[j], order[i]
    return _permuted(w, w.name(x), order)


def _reversed(w: Writer, a: Args, result: Value) -> str:
    x = a["self"]
    return _permuted(w, w.name(x), range(x.ndim)[::-1])


def _moved(w: Writer, a: Args, result: Value) -> str:
    x = a["self"]
    sources, targets = a["source"], a["destination"]
    sources = [sources] if isinstance(sources, int) else sources
    targets = [targets] if isinstance(targets, int) else targets
    places = {_at(t, x.ndim): _at(s, x.ndim) for s, t in zip(sources, targets, strict=True)}
    rest = iter(d for d in range(x.ndim) if d not in places.values())
    return _permuted(
        w, w.name(x), [places[i] if i in places else next(rest) for i in range(x.ndim)]
    )


def expanded(w: Writer, name: str, have: Sequence[tuple[int, int]], result: Value) -> str:
    """`name`, of the dimensions `have`, repeated to those of `result`."""
    want = result.dims
    have = [(0, 1)] * (len(want) - len(have)) + list(have)
    if have == want:
        return w.reshaped(name, want)
    dims = [(0, 1) if h == n else n for h, n in zip(have, want, strict=True)]
    return w.node("Expand", name, w.shape(dims))


def _expand(w: Writer, a: Args, result: Value) -> str:
    x = a["self"]
    return expanded(w, w.name(x), x.dims, result)


FILLS: dict[str, float | None] = {
    **{f"aten.{n}.default": None for n in ("full", "full_like", "new_full")},
    "aten.fill.Scalar": None,
    **{f"aten.{n}.default": 0 for n in ("zeros", "zeros_like", "new_zeros")},
    **{f"aten.{n}.default": 1 for n in ("ones", "ones_like", "new_ones")},
}


def _number_of(op: str, a: Args) -> float:
    fill = FILLS[op]
    found = a.get("fill_value", a.get("value")) if fill is None else fill
    if isinstance(found, Value) or found is None:
        raise NotWritten("a tensor filled with another")
    return float(found)


def filled(op: str, a: Args, result: Value) -> torch.Tensor:
    """A tensor of one number, of a size that does not grow; `op` is one of `FILLS`."""
    return torch.full(result.ghosts[0].shape, _number_of(op, a), dtype=result.dtype)


def _full(op: str) -> Lowering:
    def lower(w: Writer, a: Args, result: Value) -> str:
        return expanded(w, w.number(_number_of(op, a), result.dtype), [], result)

    return lower


def _cut(w: Writer, name: str, dim: int, first: int, last: int, step: int = 1) -> str:
    return w.node("Slice", name, *(w.numbers([n]) for n in (first, last, dim, step)))


def _slice(w: Writer, a: Args, result: Value) -> str:
    x = a["self"]
    first = 0 if a["start"] is None else a["start"]
    last = _FAR if a["end"] is None else a["end"]
    return _cut(w, w.name(x), _at(a["dim"], x.ndim), first, last, a["step"])


def _narrow(w: Writer, a: Args, result: Value) -> str:
    x, start = a["self"], a["start"]
    if start < 0:
        start += x.size(a["dim"])
    return _cut(w, w.name(x), _at(a["dim"], x.ndim), start, start + a["length"])


def _select(w: Writer, a: Args, result: Value) -> str:
    x = a["self"]
    return w.node(
        "Gather", w.name(x), w.number(a["index"], torch.int64), axis=_at(a["dim"], x.ndim)
    )


def _split(w: Writer, a: Args, result: Any) -> list[str]:
    x, dim = a["self"], a["dim"]
    sizes = [part.size(dim) for part in result]
    if len(sizes) == 1:
        return [w.node("Identity", w.name(x))]
    return w.node_of_several(
        "Split", w.name(x), w.numbers(sizes), outputs=len(sizes), axis=_at(dim, x.ndim)
    )


def _unbind(w: Writer, a: Args, result: Any) -> list[str]:
    x = a["self"]
    name, dim = w.name(x), _at(a["dim"], x.ndim)
    return [w.node("Gather", name, w.number(i, torch.int64), axis=dim) for i in range(len(result))]


def _joined(w: Writer, a: Args, result: Value) -> str:
    parts = [t for t in a["tensors"] if not (t.ndim == 1 and t.ghosts[0].numel() == 0)]
    names = [w.name(t, result.dtype) for t in parts]
    return w.node("Concat", *names, axis=_at(a["dim"], result.ndim))


def _stacked(w: Writer, a: Args, result: Value) -> str:
    axis = _at(a["dim"], result.ndim)
    names = [w.node("Unsqueeze", w.name(t, result.dtype), w.numbers([axis])) for t in a["tensors"]]
    return w.node("Concat", *names, axis=axis)


def _padded(w: Writer, a: Args, result: Value) -> str:
    x, given = a["self"], list(a["pad"])
    before, after = [0] * x.ndim, [0] * x.ndim
    for i in range(len(given) // 2):
        before[x.ndim - 1 - i], after[x.ndim - 1 - i] = given[2 * i], given[2 * i + 1]
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    mode = modes[a["mode"]]
    fill = [w.number(a["value"] or 0, result.dtype)] if mode == "constant" else []
    return w.node("Pad", w.name(x), w.numbers([*before, *after]), *fill, mode=mode)


def _rolled(w: Writer, a: Args, result: Value) -> str:
    x, name = a["self"], w.name(a["self"])
    if not a["dims"]:
        raise NotWritten("a roll over all dimensions at once")
    for shift, dim in zip(a["shifts"], a["dims"], strict=True):
        much = shift % x.size(dim)
        if much:
            axis = _at(dim, x.ndim)
            end, start = _cut(w, name, axis, -much, _FAR), _cut(w, name, axis, 0, -much)
            name = w.node("Concat", end, start, axis=axis)
    return w.node("Identity", name) if name == w.name(x) else name


def _flipped(w: Writer, a: Args, result: Value) -> str:
    x, name = a["self"], w.name(a["self"])
    for dim in a["dims"]:
        name = _cut(w, name, _at(dim, x.ndim), -1, -_FAR, -1)
    return name


def _repeated(w: Writer, a: Args, result: Value) -> str:
    x, counts = a["self"], list(list(a.values())[1])
    if any(isinstance(c, Grown) for c in counts):
        raise NotWritten("a repetition as often as there are images")
    dims = [(0, 1)] * (len(counts) - x.ndim) + x.dims
    counts = [1] * (len(dims) - len(counts)) + counts
    name = w.name(x) if len(dims) == x.ndim else w.reshaped(w.name(x), dims)
    return w.node("Tile", name, w.numbers(counts))


def _indexed(w: Writer, a: Args, result: Value) -> str:
    """One index, along one dimension."""
    x = a["self"]
    places = [(i, v) for i, v in enumerate(a["indices"]) if v is not None]
    if len(places) != 1 or places[0][1].dtype not in (torch.int64, torch.int32):
        raise NotWritten("an index over several dimensions, or by a mask")
    dim, index = places[0]
    return w.node("Gather", w.name(x), w.name(index), axis=dim)


def _picked(w: Writer, a: Args, result: Value) -> str:
    x = a["self"]
    return w.node("Gather", w.name(x), w.name(a["index"]), axis=_at(a["dim"], x.ndim))


def _embedded(w: Writer, a: Args, result: Value) -> str:
    return w.node("Gather", w.name(a["weight"]), w.name(a["indices"]), axis=0)


def _shuffled(w: Writer, a: Args, result: Value) -> str:
    x, groups = a["self"], a["groups"]
    dims = x.dims
    parted = [dims[0], (0, groups), (0, x.size(1) // groups), *dims[2:]]
    order = [0, 2, 1, *range(3, len(parted))]
    return w.reshaped(_permuted(w, w.reshaped(w.name(x), parted), order), dims)


def _unshuffled(w: Writer, a: Args, result: Value) -> str:
    x, f = a["self"], a["downscale_factor"]
    n, c, h, v = x.dims
    parted = [n, c, (0, h[1] // f), (0, f), (0, v[1] // f), (0, f)]
    moved = _permuted(w, w.reshaped(w.name(x), parted), [0, 1, 3, 5, 2, 4])
    return w.reshaped(moved, result.dims)


LOWERINGS: dict[str, Lowering] = {
    **{f"aten.{name}": _view for name in _VIEWS},
    "aten.permute.default": _permute,
    "aten.transpose.int": _swapped,
    "aten.swapaxes.default": _swapped,
    **{f"aten.{name}.default": _swapped for name in ("t", "mT", "adjoint")},
    "aten.numpy_T.default": _reversed,
    "aten.movedim.int": _moved,
    "aten.movedim.intlist": _moved,
    "aten.expand.default": _expand,
    "aten.expand_as.default": _expand,
    **{op: _full(op) for op in FILLS},
    "aten.slice.Tensor": _slice,
    "aten.narrow.default": _narrow,
    "aten.select.int": _select,
    **{f"aten.{n}": _split for n in ("split.Tensor", "split_with_sizes.default", "chunk.default")},
    "aten.tensor_split.sections": _split,
    "aten.unbind.int": _unbind,
    "aten.cat.default": _joined,
    "aten.concat.default": _joined,
    "aten.stack.default": _stacked,
    "aten.pad.default": _padded,
    "aten.roll.default": _rolled,
    "aten.flip.default": _flipped,
    "aten.repeat.default": _repeated,
    "aten.tile.default": _repeated,
    "aten.index.Tensor": _indexed,
    "aten.index_select.default": _picked,
    "aten.embedding.default": _embedded,
    "aten.channel_shuffle.default": _shuffled,
    "aten.pixel_unshuffle.default": _unshuffled,
}
