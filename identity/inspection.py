"""What can be told of Python objects and tensors from outside, the same in every process."""

from __future__ import annotations

import hashlib
import secrets
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

_LIBRARIES = {"torch", "torchvision", "numpy"}  # their functions are told by name
_NONCE = secrets.token_hex(16)


def opaque() -> Any:
    """Of what shows nothing of itself: different in every process."""
    return ["opaque", _NONCE]


def is_library(module: str | None) -> bool:
    """Whether code of that module is told by its name: torch's, numpy's, Python's own."""
    if module is None:
        return True
    root = module.partition(".")[0]
    if root in _LIBRARIES:
        return True
    if root not in sys.stdlib_module_names:
        return False
    # A file of the user may be called like a module of Python's.
    file = getattr(sys.modules.get(root), "__file__", None)
    return file is None or Path(file).is_relative_to(sysconfig.get_paths()["stdlib"])


def name_of(value: Any) -> str:
    """Module and qualified name."""
    module = getattr(value, "__module__", None) or ""
    return f"{module}.{getattr(value, '__qualname__', None) or getattr(value, '__name__', '')}"


def content_of_cell(cell: types.CellType) -> Any:
    """What a closure holds in one cell."""
    try:
        return cell.cell_contents
    except ValueError:
        return ["empty cell"]


def names_in(code: types.CodeType) -> set[str]:
    """Names that code reads, nested code too."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*map(names_in, inner)) if inner else set(code.co_names)


def slots_of(kind: type) -> list[str]:
    """Attributes that a class keeps outside `__dict__`."""
    slots = vars(kind).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    return [n for n in names if n not in ("__dict__", "__weakref__")]


def state_of(value: Any) -> Any:
    """The state of an object of a C++ library, such as the packed weights of a quantised layer."""
    getter: Callable[[], Any] | None = getattr(value, "__getstate__", None)
    if getter is None or not isinstance(value, torch.ScriptObject):
        return None
    try:
        return getter()
    except Exception:
        return None


def reduced(value: Any) -> Any:
    """What would be pickled of an object of a C library; nothing is pickled."""
    try:
        made = value.__reduce_ex__(4)
        return (
            made
            if isinstance(made, str)
            else [list(p) if isinstance(p, Iterator) else p for p in made]
        )
    except Exception:
        return None


def place_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Where a tensor lies: two with the same place are one."""
    if tensor.layout is torch.strided and not tensor.is_meta and tensor.numel():
        try:
            start = tensor.untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError):
            start = 0
        if start:
            form = (tuple(tensor.shape), tensor.stride(), tensor.dtype)
            return (start, tensor.storage_offset(), *form)
    return ("object", id(tensor))


def content_of(tensor: torch.Tensor) -> Any:
    """A digest of the values of a tensor of any layout."""
    try:
        return _values(tensor)
    except (RuntimeError, NotImplementedError, TypeError):
        return opaque()


def _values(tensor: torch.Tensor) -> Any:
    if tensor.is_meta:
        return "no values"
    tensor = tensor.detach().cpu()
    if tensor.is_quantized:
        return [str(tensor.qscheme()), _values(tensor.int_repr()), _values(tensor.dequantize())]
    if tensor.layout is not torch.strided:
        dense = tensor.to_dense()
        return [str(tensor.layout), _values(dense)]
    flat = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return digest(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def digest(data: Any) -> str:
    """SHA-256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()
