"""Python values as canonical JSON values: equal exactly where what they compute is equal.

Independent of memory addresses, of the order of attributes and keyword arguments, and of the
process. What shows nothing of itself (an open file, a C object without state) is described
differently in every process, so that nothing stored about it is ever taken for it.
"""

from __future__ import annotations

import enum
import functools
import json
import logging
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .inspection import (
    content_of,
    content_of_cell,
    digest,
    is_library,
    name_of,
    names_in,
    opaque,
    place_of,
    reduced,
    slots_of,
    state_of,
)

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
            return ["enum", name_of(type(value)), value.name]
        if isinstance(value, (int, float, complex)):
            return [type(value).__name__, repr(value)]
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
            array = np.ascontiguousarray(value)
            return ["array", str(value.dtype), list(value.shape), digest(array.tobytes())]
        if isinstance(value, (bytes, bytearray)):
            return ["bytes", digest(bytes(value))]
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
        self._done[id(value)] = told = digest(text.encode())
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
            return [name_of(type(value)), *map(self.value, value)]
        pairs = [[self.value(k), self.value(v)] for k, v in value.items()]
        # Functions and modules may be applied one after the other; of numbers order says nothing.
        ordered = isinstance(value, OrderedDict) or any(callable(v) for v in value.values())
        return ["mapping", *(pairs if ordered else sorted(pairs, key=json.dumps))]

    def _tensor(self, tensor: torch.Tensor) -> Any:
        plain = [str(tensor.dtype), list(tensor.shape)]
        place = place_of(tensor)
        if place in self._tied:
            return ["tied", self._tied[place], *plain]
        self._alive.append(tensor)
        self._tied[place] = len(self._tied)
        if id(tensor) in self._bare:
            return ["tensor", *plain]
        return ["tensor", *plain, content_of(tensor)]

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
            return ["wrapped", name_of(type(value)), self.value(value.__wrapped__)]
        if isinstance(value, _BUILTIN):
            owner = getattr(value, "__self__", None)
            held = None if owner is None or isinstance(owner, (type, types.ModuleType)) else owner
            return ["builtin", name_of(value), None if held is None else self.value(held)]
        return self._object(value)

    def _function(self, function: types.FunctionType) -> Any:
        named = ["function", name_of(function), function.__name__]
        if is_library(function.__module__) and "<locals>" not in function.__qualname__:
            return named
        cells = [content_of_cell(c) for c in function.__closure__ or ()]
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
        names = sorted(names_in(function.__code__))
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
            digest(code.co_code),
            [self.value(c) for c in code.co_consts],
            list(code.co_names),
            list(code.co_varnames),
            list(code.co_freevars),
            list(code.co_cellvars),
            code.co_argcount,
            code.co_posonlyargcount,
            code.co_kwonlyargcount,
            code.co_flags,
            digest(code.co_exceptiontable),
        ]

    def _class(self, kind: type) -> Any:
        if is_library(kind.__module__):
            return ["class", name_of(kind)]
        own = {k: v for k, v in vars(kind).items() if k not in _OF_EVERY_CLASS}
        bases = [self.value(b) for b in kind.__bases__]
        return ["class", name_of(kind), bases, sorted([k, self._member(v)] for k, v in own.items())]

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
        slots = [n for c in type(value).__mro__ for n in slots_of(c) if hasattr(value, n)]
        if hasattr(value, "__dict__") or slots:
            held = {**getattr(value, "__dict__", {}), **{n: getattr(value, n) for n in slots}}
            told = sorted([k, self.value(v)] for k, v in held.items())
            if told or type(value).__module__ != "builtins":
                return ["object", kind, told]
        for state in (state_of, reduced):
            found = state(value)
            if found is not None:
                return ["object", kind, self.value(found)]
        return [opaque(), kind]
