"""What a program may name: ATen operators, operations on sizes, and arguments that are plain data.

Whoever may write a program chooses what runs in the enclave, so whatever is not listed (`allowed`)
is refused, and so is text but for a few known words.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import BundleError, ExportError
from .allowed import OPERATORS
from .tensors import DTYPES

_SIZE_OPS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "getitem": operator.getitem,
}
SIZE_NAMES = {function: name for name, function in _SIZE_OPS.items()}
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
        "same",
        "valid",
    ]
)
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
    if not name.startswith("aten."):
        raise BundleError(f"program names {name[:80]!r}, which is no ATen operator")
    if name not in OPERATORS:
        raise BundleError(f"program names {name[:80]!r}, which a program may not use")
    _, base, overload = name.split(".")
    found = getattr(getattr(torch.ops.aten, base, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        raise BundleError(f"program names {name!r}, which this version of torch does not have")
    return found


def makes_tensors(call: Any) -> bool:
    """Whether an operator makes a tensor of numbers alone, on a device that it is told."""
    arguments = getattr(call, "_schema", None)
    named = {a.name: str(a.type) for a in arguments.arguments} if arguments is not None else {}
    return "device" in named and not any("Tensor" in kind for kind in named.values())


def to_data(value: Any) -> Any:
    """An argument as JSON: everything but numbers, booleans and None is tagged.

    Raises:
        ExportError: What cannot be stored.
    """
    if isinstance(value, Ref):
        return {"v": value.index}
    if isinstance(value, Device):
        return {"device": True}
    if isinstance(value, (list, tuple)):
        return [to_data(v) for v in value]
    if isinstance(value, dict):
        return {k: to_data(v) for k, v in value.items()}
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


def from_data(value: Any, before: int) -> Any:
    """The argument that `to_data` wrote; it may name values below the index `before` alone.

    Raises:
        BundleError: Nothing that `to_data` writes.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, list):
        return [from_data(v, before) for v in value]
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
