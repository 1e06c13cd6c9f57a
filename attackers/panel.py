"""Attackers by name: ours, and those that other packages bring by the entry point group."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from ..errors import UsageError, nearest
from .base import Attacker
from .blind import Blind
from .cgan import CGan
from .decoder import Decoder
from .ensemble import Ensemble
from .hybrid import Hybrid
from .linear import Linear
from .newton import Newton
from .rmle import Rmle
from .sketch import Sketch
from .stack import Stack

GROUP = "partopt.attackers"
ATTACKERS: dict[str, type[Attacker]] = {
    a.name: a for a in (Blind, Linear, Sketch, Newton, Decoder, CGan, Rmle, Hybrid, Ensemble, Stack)
}


def names() -> list[str]:
    """All names that `make` knows; other packages are listed, not imported."""
    return [*ATTACKERS, *(e.name for e in _offered() if e.name not in ATTACKERS)]


def make(name: str, settings: Mapping[str, Any] | None = None) -> Attacker:
    """An attacker with the given settings.

    Raises:
        UsageError: Unknown name or setting, or an entry point that is no attacker.
    """
    kind = ATTACKERS.get(name) or _brought(name)
    if kind is None:
        raise UsageError(
            f"`attackers` got {name!r}{nearest(name, names())}; use some of {', '.join(names())}"
        )
    try:
        return kind(**(settings or {}))
    except TypeError as error:
        raise UsageError(f"`attackers` got a setting that {name} lacks: {error}") from error


def _offered() -> list[metadata.EntryPoint]:
    return sorted(metadata.entry_points(group=GROUP), key=lambda e: e.name)


def _brought(name: str) -> type[Attacker] | None:
    """An attacker of another package; its code runs only when it is asked for by name."""
    for entry in _offered():
        if entry.name != name:
            continue
        try:
            kind = entry.load()
        except Exception as error:
            raise UsageError(
                f"`attackers` got {name!r}, which {entry.value} brings but cannot load: {error}"
            ) from error
        if not (isinstance(kind, type) and issubclass(kind, Attacker)) or kind.name != name:
            raise UsageError(
                f"`attackers` got {name!r}, but {entry.value} is no attacker of that name; see "
                "partopt.testing"
            )
        return kind
    return None
