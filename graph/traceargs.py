"""How a user asks for a model to be traced: arguments to fix, modules to keep whole; as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from ..errors import UsageError, nearest

Value = bool | int | float | str | None
_WORDS: dict[str, Value] = {"none": None, "true": True, "false": False}


@dataclass(frozen=True)
class Tracing:
    """What is stored of it in a split config.

    Attributes:
        concrete_args: Arguments of ``forward`` and the values that it is called with.
        leaf_modules: Classes of modules that stay one node, ``package.module.Class`` or ``Class``.
    """

    concrete_args: Mapping[str, Value] = field(default_factory=dict)
    leaf_modules: tuple[str, ...] = ()

    @classmethod
    def parse(cls, concrete_args: str | None, leaf_modules: str | None) -> Tracing:
        """Read ``mask=None,features=false`` and ``package.module.Class,...``.

        Raises:
            UsageError: An argument without a value, or given twice.
        """
        given: dict[str, Value] = {}
        for part in filter(None, (p.strip() for p in (concrete_args or "").split(","))):
            name, equals, text = (t.strip() for t in part.partition("="))
            if not equals or not name.isidentifier() or name in given:
                raise UsageError(
                    f"`concrete_args` got {part!r}; use NAME=VALUE, each name once, e.g. "
                    "mask=None,features=false"
                )
            given[name] = _value(text)
        classes = filter(None, (c.strip() for c in (leaf_modules or "").split(",")))
        return cls(given, tuple(classes))


def _value(text: str) -> Value:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if math.isfinite(number):
            return number
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text


def leaf_classes(model: nn.Module, names: Sequence[str]) -> list[type[nn.Module]]:
    """The classes of `model`'s modules called `names`; nothing is imported.

    Raises:
        UsageError: No module of the model is of a class of that name.
    """
    known: dict[str, type[nn.Module]] = {}
    for module in model.modules():
        for kind in type(module).__mro__:
            if issubclass(kind, nn.Module) and kind is not nn.Module:
                known.setdefault(kind.__qualname__, kind)
                known.setdefault(f"{kind.__module__}.{kind.__qualname__}", kind)
    for name in names:
        if name not in known:
            raise UsageError(
                f"`leaf_modules` got {name!r}, of which the model has none{nearest(name, known)}; "
                "use package.module.Class"
            )
    return [known[name] for name in names]
