"""How large a program's values get, worked out on shapes before anything is allocated.

A step is run on meta tensors, which have a shape and a dtype but no memory. What has passed may
then run on real ones of the same shapes. `export` goes through the same gate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ...errors import BundleError
from .limits import MAX_BYTES, MAX_DIMS, MAX_ELEMENTS, MAX_LIVE_BYTES
from .operators import Device, Ref, Step

# Sizes and other whole numbers of a program.
MAX_NUMBER = 1 << 48
_META = torch.device("meta")


def ghost(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of that shape without memory."""
    return torch.empty(tuple(shape), dtype=dtype, device=_META)


def hold(given: Iterable[torch.Tensor], steps: Sequence[Step]) -> list[Any]:
    """Every value of a program, as ghosts.

    Args:
        given: Inputs and constants; only their shapes, strides and dtypes are looked at.
        steps: With what is dead after each.

    Raises:
        BundleError: A step that does not work on these shapes, or a value that is too large.
    """
    values: list[Any] = [
        torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=_META) for t in given
    ]
    weights = [_weight(v, "an input or constant") for v in values]
    live = sum(weights)
    with torch.inference_mode():
        for number, step in enumerate(steps):
            where = f"step {number} ({step.op})"
            try:
                args = [_put(a, values) for a in step.args]
                result = step.call(*args, **{k: _put(v, values) for k, v in step.kwargs.items()})
            except Exception as error:  # a hundred operators, and as many ways to say no
                reason = str(error).strip().splitlines()[:1]
                raise BundleError(
                    f"program's {where} does not fit its tensors ({' '.join(reason)[:160]})"
                ) from None
            values.append(result)
            weights.append(_weight(result, where))
            live += weights[-1]
            if live > MAX_LIVE_BYTES:
                raise BundleError(f"program needs more than {MAX_LIVE_BYTES} bytes at its {where}")
            for dead in step.free:
                live, weights[dead] = live - weights[dead], 0
    return values


def _put(arg: Any, values: list[Any]) -> Any:
    kind = type(arg)
    if kind is Ref:
        return values[arg.index]
    if kind is list:
        return [_put(a, values) for a in arg]
    return _META if kind is Device else arg


def _weight(value: Any, where: str) -> int:
    """Bytes of a value.

    Raises:
        BundleError: It is larger than any that export writes, or no value of a network.
    """
    if isinstance(value, torch.Tensor):
        elements = math.prod(value.shape)
        size = elements * value.dtype.itemsize
        if value.ndim > MAX_DIMS or elements > MAX_ELEMENTS or size > MAX_BYTES:
            raise BundleError(
                f"program has a tensor of shape {tuple(value.shape)} at {where}; the most is "
                f"{MAX_DIMS} dimensions and {MAX_BYTES} bytes"
            )
        if value.device != _META:
            raise BundleError(f"program has a tensor on a device of its own at {where}")
        return size
    if isinstance(value, (list, tuple)):
        return sum(_weight(v, where) for v in value)
    if isinstance(value, (bool, int, float)) and abs(value) <= MAX_NUMBER:
        return 0
    raise BundleError(f"program has the value {str(value)[:40]} at {where}, which is no size")
