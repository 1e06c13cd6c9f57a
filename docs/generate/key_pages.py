"""The references of the split config and of the settings file, from their pydantic models."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, get_args

from command_page import cell
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from partopt import config, settings

_SPLIT = """\
# Split config

What `partopt find` writes as `MODEL.split.json`: the answer, and every figure, setting and warning
behind it. Reading is strict: an unknown key or a newer schema is an error, and nothing in the file
can run code. `partopt schema` prints the JSON Schema. A split config is under test:
[`partopt check`](../how-to/ci-gate.md) believes none of its figures unless told to.
"""
_SETTINGS = """\
# Settings file

`partopt.toml`, or `[tool.partopt]` in `pyproject.toml`; `partopt find` and `partopt check` read the
same file. Options on the command line come before it. Paths are relative to the file, and unknown
keys are errors. [Guarding a cut in CI](../how-to/ci-gate.md#settings) has an example.
"""


def split_config() -> str:
    """The page of the split config's keys."""
    return "\n".join([_SPLIT, *_sections([config.SplitConfig])])


def settings_reference() -> str:
    """The page of the settings file's keys."""
    return "\n".join([_SETTINGS, *_sections([settings.Settings])])


def _sections(roots: list[type[BaseModel]]) -> Iterator[str]:
    waiting, done = list(roots), set()
    while waiting:
        model = waiting.pop(0)
        if model in done:
            continue
        done.add(model)
        yield f"\n## {model.__name__}\n\n{inspect.getdoc(model) or ''}\n"
        yield "| key | type | default |\n|---|---|---|"
        for name, field in model.model_fields.items():
            kind = _type(field.annotation)
            yield f"| `{field.alias or name}` | {cell(kind)} | {_default(field)} |"
            waiting += _inner(field.annotation)


def _inner(annotation: Any) -> list[type[BaseModel]]:
    """The models that a type holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _inner(part)]


def _type(annotation: Any) -> str:
    text = inspect.formatannotation(annotation, base_module="builtins")
    for noise in ("typing.", "partopt.config.", "partopt.settings.", "config.", "settings."):
        text = text.replace(noise, "")
    return text


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    factory: Any = field.default_factory
    value = factory() if factory is not None else field.default
    return f"`{value!r}`"
