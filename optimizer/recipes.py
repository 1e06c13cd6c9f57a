"""Attackers as data: by name, with their settings. Nothing in it is code."""

from __future__ import annotations

from typing import Any

from ..attackers.base import Attacker
from ..attackers.panel import make
from ..errors import AttackError, ConfigError

_DEEPEST = 8  # attackers and tuples within each other


def recipe(attacker: Attacker) -> dict[str, Any]:
    """An attacker as JSON has it.

    Raises:
        AttackError: A setting that JSON has no word for, or an attacker that its name does not
            lead back to.
    """
    told = _recipe(attacker)
    if repr(made_of(told)) != repr(attacker):
        raise AttackError(
            f"{attacker!r} is not what other processes know as {attacker.name!r}; give it a name "
            "of its own, or run it without --workers"
        )
    return told


def _recipe(attacker: Attacker) -> dict[str, Any]:
    settings = {n: _plain(v, attacker) for n, v in attacker.settings().items()}
    return {"attacker": attacker.name, "settings": settings}


def made_of(value: Any, depth: int = 0) -> Attacker:
    """The attacker that `recipe` told of; it is looked up by name among those installed here.

    Raises:
        ConfigError: It is no recipe.
        UsageError: There is no such attacker here, or it lacks a setting.
    """
    if not isinstance(value, dict) or set(value) != {"attacker", "settings"} or depth > _DEEPEST:
        raise ConfigError("a job names no attacker; it is not one of this version's")
    settings, name = value["settings"], value["attacker"]
    if not isinstance(name, str) or not isinstance(settings, dict):
        raise ConfigError("a job names no attacker; it is not one of this version's")
    return make(name, {str(n): _rich(v, depth + 1) for n, v in settings.items()})


def _plain(value: Any, whose: Attacker) -> Any:
    if isinstance(value, Attacker):
        return _recipe(value)
    if isinstance(value, tuple):
        return {"tuple": [_plain(v, whose) for v in value]}
    if isinstance(value, list):
        return [_plain(v, whose) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise AttackError(
        f"{whose!r} has a setting of type {type(value).__name__}, which no other process can be "
        "told; run it without --workers"
    )


def _rich(value: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ConfigError("a job has settings within settings without end")
    if isinstance(value, dict):
        if set(value) == {"tuple"} and isinstance(value["tuple"], list):
            return tuple(_rich(v, depth + 1) for v in value["tuple"])
        return made_of(value, depth)
    if isinstance(value, list):
        return [_rich(v, depth + 1) for v in value]
    return value
