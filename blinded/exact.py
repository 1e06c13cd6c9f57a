"""A layer's sums, exact: what the outside computes on masked values, and the inside for factors.

``limbs`` writes a 32-bit residue as four signed bytes and uses 8-bit products with 32-bit sums;
``float64`` multiplies in double precision, where all partial sums stay below 2^53. Single precision
is never used: its errors are silent, and on a GPU even its 32 bits are ten (TF32). The products are
matrix products on both kinds of device, never a library's convolution, which may pick a transform
that rounds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch.nn import functional as F

from ..errors import BackendError
from .layers import Layer
from .ring import add, wrap

ARITHMETIC = ("limbs", "float64")
_FLOAT_COLUMNS = 1 << 15  # 2^31 * 2^7 * 2^15 = 2^53
_LIMB_COLUMNS = 1 << 16  # 2^7 * 2^7 * 2^16 = 2^30
_VALUES = 1 << 21  # of unrolled input at a time: bounds the memory


def modular(layer: Layer, values: torch.Tensor, arithmetic: str | None = None) -> torch.Tensor:
    """The layer's output modulo 2^32.

    Args:
        layer: The layer.
        values: (batch, \\*layer.shape), int32 residues, on any device where `choose` finds an
            exact arithmetic.
        arithmetic: One of `ARITHMETIC`, or None for what `choose` finds.

    Returns:
        (batch, \\*layer.output_shape), int32, on the device of `values`.

    Raises:
        BackendError: No arithmetic is exact on that device.
    """
    how = arithmetic or choose(values.device.type)
    if how == "float64":
        return _sums(layer, values.to(torch.float64))
    return _joined(_sums(layer, limbs(values).flatten(0, 1)).unflatten(0, (4, -1)))


def limbs(values: torch.Tensor) -> torch.Tensor:
    """Four int8 digits (4, \\*shape) of int32 residues in base 256, from -128 to 127, lowest first.

    With 128 added to every digit at once, the bytes are the digits plus 128.
    """
    shifted = add(values, torch.full_like(values, -0x7F7F7F80)).unsqueeze(-1)
    return (shifted.view(torch.int8) ^ -128).movedim(-1, 0)


def _joined(sums: torch.Tensor) -> torch.Tensor:
    total = sums[0].clone()
    for i in (1, 2, 3):
        total += sums[i] << (8 * i)
    return total


def _sums(layer: Layer, values: torch.Tensor) -> torch.Tensor:
    """The layer's sums over int8 or float64 `values`, modulo 2^32, as int32."""
    weight = layer.weight.to(values.device)
    if layer.window is None:
        rows = values.reshape(-1, values.shape[-1])
        return _product(rows, weight).reshape(len(values), *layer.output_shape)
    groups = layer.window.groups
    out = torch.empty(len(values), *layer.output_shape, dtype=torch.int32, device=values.device)
    each = weight.shape[0] // groups
    for first, patches in unrolled(layer, values):
        last = first + patches.shape[1]
        for g, own in enumerate(weight.flatten(1).chunk(groups)):
            rows = patches[:, :, :, g].flatten(0, 2).flatten(1)
            found = _product(rows, own).reshape(*patches.shape[:3], each)
            out[:, g * each : (g + 1) * each, first:last] = found.permute(0, 3, 1, 2)
    return out


def unrolled(layer: Layer, values: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """What each output position of a convolution reads, some rows of positions at a time.

    Yields:
        The first row, and a view (batch, rows, columns, groups, channels, height, width).
    """
    window = layer.window
    assert window is not None
    _, height, width = layer.output_shape
    high, wide = layer.weight.shape[2:]
    padded = F.pad(values, window.padding)
    view = padded
    for dim, size, i in ((2, high, 0), (3, wide, 1)):
        step = window.dilation[i]
        view = view.unfold(dim, (size - 1) * step + 1, window.stride[i])[..., ::step]
    view = view[:, :, :height, :width].unflatten(1, (window.groups, -1))
    view = view.permute(0, 3, 4, 1, 2, 5, 6)
    per_row = max(1, view[:, :1].numel())
    step = max(1, _VALUES // per_row)
    for first in range(0, height, step):
        yield first, view[:, first : first + step]


def _product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """rows (n, k) int8 or float64 times weight (m, k) int8, modulo 2^32, as (n, m) int32."""
    whole = rows.dtype == torch.int8
    most = _LIMB_COLUMNS if whole else _FLOAT_COLUMNS
    total: torch.Tensor | None = None
    for start in range(0, rows.shape[1], most):
        part, own = rows[:, start : start + most], weight[:, start : start + most]
        if whole:
            found = _whole_product(part, own)
        else:
            found = wrap((part @ own.to(torch.float64).T).to(torch.int64))
        total = found if total is None else add(total, found)
    assert total is not None
    return total


def _whole_product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    n, m = rows.shape[0], weight.shape[0]
    if rows.device.type != "cpu":
        # There the product wants more than 16 rows and multiples of 8; zeros change no sum.
        rows = F.pad(rows, (0, -rows.shape[1] % 8, 0, max(0, 17 - n)))
        weight = F.pad(weight, (0, -weight.shape[1] % 8, 0, -m % 8))
    return torch._int_mm(rows.contiguous(), weight.T.contiguous())[:n, :m]


@functools.cache
def choose(device: str) -> str:
    """The fastest arithmetic that is exact on a kind of device, as seen on the worst values.

    8-bit products saturate in silence on processors that pair them in 16 bits, so it is tried and
    not assumed.

    Raises:
        BackendError: None is.
    """
    for how in ARITHMETIC:
        if _exact(how, device):
            return how
    raise BackendError(
        f"`device` {device!r} multiplies integers exactly in none of {', '.join(ARITHMETIC)}; "
        "run the outside of blinded layers on another device"
    )


def _exact(how: str, device: str) -> bool:
    extremes = torch.tensor([-(1 << 31), (1 << 31) - 1, -1, 0x7F7F7F7F, -0x7F7F7F80, 1])
    generator = torch.Generator().manual_seed(0)
    rows = extremes.repeat(40, 1)[:, torch.randint(0, 6, (512,), generator=generator)]
    rows[:6] = extremes[:, None]
    weight = torch.full((24, 512), 127)
    weight[1::3] = -127
    weight[2::3] = torch.randint(-127, 128, (8, 512), generator=generator)
    try:
        layer = Layer("tried", weight.to(torch.int8), (512,), 1)
        found = modular(layer, rows.to(device, torch.int32), how).cpu()
    except (RuntimeError, NotImplementedError):
        return False
    return torch.equal(found, wrap(rows @ weight.T))
