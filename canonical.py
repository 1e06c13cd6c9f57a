"""Python values as canonical JSON values: equal exactly where what they compute is equal.

Independent of memory addresses, of the order of attributes and keyword arguments, and of the
process. What shows nothing of itself (an open file, a C object without state) is described
differently in every process, so that nothing stored about it is ever taken for it.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import logging
import secrets
import sys
import sysconfig
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

_LIBRARIES = {"torch", "torchvision", "numpy"}  # their functions are told by name
# What an `nn.Module` holds besides its settings; hooks that run in the forward pass are added.
_MACHINERY = {
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
}
_OF_EVERY_CLASS = {
    "__module__",
    "__doc__",
    "__dict__",
    "__weakref__",
    "__annotations__",
    "__firstlineno__",
    "__static_attributes__",
    "__abstractmethods__",
    "_abc_impl",
    "__parameters__",
    "__slots__",
    "__annotate_func__",
    "__annotations_cache__",
    "__qualname__",
    "__orig_bases__",
}
_NAMED = (
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    torch.qscheme,
    Path,
)
_BUILTIN = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
)
_INERT = (type(threading.Lock()), type(threading.RLock()), weakref.ReferenceType)
_NONCE = secrets.token_hex(16)


class Canonical:
    """Describes values; one instance a network, since it tells tensors that are tied.

    Args:
        bare: Tensors that are described by dtype and shape alone.
    """

    def __init__(self, bare: Iterable[torch.Tensor] = ()) -> None:
        self._bare = {id(t) for t in bare}
        self._tied: dict[tuple[Any, ...], int] = {}
        self._done: dict[int, str] = {}
        self._open: list[int] = []
        self._alive: list[Any] = []  # an id is unique only while its object lives

    def value(self, value: Any) -> Any:
        """`value` as a JSON value."""
        if value is None or isinstance(value, (bool, str)) or type(value) is int:
            return value
        if isinstance(value, enum.Enum):
            return ["enum", _name(type(value)), value.name]
        if isinstance(value, (int, float, complex)):
            return [type(value).__name__, repr(value)]
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
            array = np.ascontiguousarray(value)
            return ["array", str(value.dtype), list(value.shape), _digest(array.tobytes())]
        if isinstance(value, (bytes, bytearray)):
            return ["bytes", _digest(bytes(value))]
        if isinstance(value, _NAMED):
            return [type(value).__name__, str(value)]
        if value is Ellipsis or isinstance(value, (range, _INERT)):
            return repr(value) if isinstance(value, range) else ["inert", type(value).__name__]
        if isinstance(value, slice):
            return ["slice", *map(self.value, (value.start, value.stop, value.step))]
        return self._once(value)

    def _once(self, value: Any) -> Any:
        """What can hold itself, or be held many times."""
        known = self._done.get(id(value))
        if known is not None:
            return known
        if id(value) in self._open:
            return ["around", len(self._open) - self._open.index(id(value))]
        self._open.append(id(value))
        self._alive.append(value)
        try:
            told = self._compound(value)
        finally:
            self._open.pop()
        # Described as a digest, for what is held many times would be written out many times.
        text = json.dumps(told, separators=(",", ":"))
        self._done[id(value)] = told = _digest(text.encode())
        return told

    def _compound(self, value: Any) -> Any:
        if isinstance(value, torch.Size):
            return [["builtins.tuple", *value]]
        if isinstance(value, (tuple, list, set, frozenset, Mapping)):
            attributes = sorted(
                [k, self.value(v)] for k, v in getattr(value, "__dict__", {}).items()
            )
            return [self._items(value), *([attributes] if attributes else [])]
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, types.CodeType):
            return self._code(value)
        return self._callable(value) if callable(value) else self._object(value)

    def _items(self, value: Any) -> Any:
        if isinstance(value, (set, frozenset)):
            return ["set", *sorted((self.value(v) for v in value), key=json.dumps)]
        if not isinstance(value, Mapping):
            return [_name(type(value)), *map(self.value, value)]
        pairs = [[self.value(k), self.value(v)] for k, v in value.items()]
        # Functions and modules may be applied one after the other; of numbers order says nothing.
        ordered = isinstance(value, OrderedDict) or any(callable(v) for v in value.values())
        return ["mapping", *(pairs if ordered else sorted(pairs, key=json.dumps))]

    def _tensor(self, tensor: torch.Tensor) -> Any:
        plain = [str(tensor.dtype), list(tensor.shape)]
        place = _place(tensor)
        if place in self._tied:
            return ["tied", self._tied[place], *plain]
        self._alive.append(tensor)
        self._tied[place] = len(self._tied)
        if id(tensor) in self._bare:
            return ["tensor", *plain]
        return ["tensor", *plain, _content(tensor)]

    def _module(self, module: nn.Module) -> Any:
        if isinstance(module, torch.jit.ScriptModule):
            state = {k: self.value(v) for k, v in sorted(module.state_dict().items())}
            return ["script", str(module.code), str(module.graph), state]
        own = vars(module)
        hooks = [
            self.value(hook)
            for name in ("_forward_pre_hooks", "_forward_hooks")
            for hook in own.get(name, {}).values()
        ]
        return [
            "module",
            self.value(type(module)),
            sorted([k, self.value(v)] for k, v in own.items() if k not in _MACHINERY),
            hooks,
            sorted([k, self.value(v)] for k, v in module._parameters.items()),
            sorted([k, self.value(v)] for k, v in module._buffers.items()),
            [[k, self.value(v)] for k, v in module._modules.items()],  # run in their order
        ]

    def _callable(self, value: Any) -> Any:
        if isinstance(value, types.MethodType):
            return ["method", self.value(value.__func__), self.value(value.__self__)]
        if isinstance(value, functools.partial):
            return ["partial", *map(self.value, (value.func, value.args, value.keywords))]
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
            return ["operator", str(value), str(getattr(value, "_schema", ""))]
        if isinstance(value, torch.jit.ScriptFunction):
            return ["script", str(value.code)]
        if isinstance(getattr(value, "__wrapped__", None), types.FunctionType):
            return ["wrapped", _name(type(value)), self.value(value.__wrapped__)]
        if isinstance(value, _BUILTIN):
            owner = getattr(value, "__self__", None)
            held = None if owner is None or isinstance(owner, (type, types.ModuleType)) else owner
            return ["builtin", _name(value), None if held is None else self.value(held)]
        return self._object(value)

    def _function(self, function: types.FunctionType) -> Any:
        named = ["function", _name(function), function.__name__]
        if is_library(function.__module__) and "<locals>" not in function.__qualname__:
            return named
        cells = [_cell(c) for c in function.__closure__ or ()]
        return [
            *named,
            self.value(function.__code__),
            self.value(function.__defaults__),
            self.value(function.__kwdefaults__),
            [self.value(c) for c in cells],
            self._globals_of(function),
        ]

    def _globals_of(self, function: types.FunctionType) -> Any:
        """What the function reads by name outside itself, in modules of the user too."""
        names = sorted(_names_in(function.__code__))
        told: list[Any] = []
        for name in names:
            if name not in function.__globals__:
                continue
            found = function.__globals__[name]
            if not isinstance(found, types.ModuleType):
                told.append([name, self.value(found)])
            elif is_library(found.__name__):
                told.append([name, found.__name__])
            else:
                inside = [n for n in names if n in vars(found)]
                plain = {n: vars(found)[n] for n in inside}
                told += [
                    [name, n, v.__name__ if isinstance(v, types.ModuleType) else self.value(v)]
                    for n, v in plain.items()
                ]
        return told

    def _code(self, code: types.CodeType) -> Any:
        """What runs: no file names and no line numbers."""
        return [
            "code",
            _digest(code.co_code),
            [self.value(c) for c in code.co_consts],
            list(code.co_names),
            list(code.co_varnames),
            list(code.co_freevars),
            list(code.co_cellvars),
            code.co_argcount,
            code.co_posonlyargcount,
            code.co_kwonlyargcount,
            code.co_flags,
            _digest(code.co_exceptiontable),
        ]

    def _class(self, kind: type) -> Any:
        if is_library(kind.__module__):
            return ["class", _name(kind)]
        own = {k: v for k, v in vars(kind).items() if k not in _OF_EVERY_CLASS}
        bases = [self.value(b) for b in kind.__bases__]
        return ["class", _name(kind), bases, sorted([k, self._member(v)] for k, v in own.items())]

    def _member(self, member: Any) -> Any:
        if isinstance(member, (staticmethod, classmethod)):
            return [type(member).__name__, self.value(member.__func__)]
        if isinstance(member, property):
            return ["property", *map(self.value, (member.fget, member.fset))]
        if isinstance(member, (types.MemberDescriptorType, types.GetSetDescriptorType)):
            return "slot"
        return self.value(member)

    def _object(self, value: Any) -> Any:
        kind = self.value(type(value))
        if isinstance(value, types.ModuleType):
            return ["python module", value.__name__]
        if isinstance(value, logging.Logger):
            return ["logger", value.name]
        slots = [n for c in type(value).__mro__ for n in _slots(c) if hasattr(value, n)]
        if hasattr(value, "__dict__") or slots:
            held = {**getattr(value, "__dict__", {}), **{n: getattr(value, n) for n in slots}}
            told = sorted([k, self.value(v)] for k, v in held.items())
            if told or type(value).__module__ != "builtins":
                return ["object", kind, told]
        for state in (_state, _reduced):
            found = state(value)
            if found is not None:
                return ["object", kind, self.value(found)]
        return ["opaque", kind, _NONCE]


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


def _name(value: Any) -> str:
    module = getattr(value, "__module__", None) or ""
    return f"{module}.{getattr(value, '__qualname__', None) or getattr(value, '__name__', '')}"


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return ["empty cell"]


def _names_in(code: types.CodeType) -> set[str]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*map(_names_in, inner)) if inner else set(code.co_names)


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    return [n for n in names if n not in ("__dict__", "__weakref__")]


def _state(value: Any) -> Any:
    """The state of an object of a C++ library, such as the packed weights of a quantised layer."""
    getter: Callable[[], Any] | None = getattr(value, "__getstate__", None)
    if getter is None or not isinstance(value, torch.ScriptObject):
        return None
    try:
        return getter()
    except Exception:
        return None


def _reduced(value: Any) -> Any:
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


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
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


def _content(tensor: torch.Tensor) -> Any:
    try:
        return _values(tensor)
    except (RuntimeError, NotImplementedError, TypeError):
        return ["opaque", _NONCE]


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
    return _digest(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def _digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()
