"""Attackers by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UsageError, nearest
from .base import Attacker
from .blind import Blind
from .decoder import Decoder
from .linear import Linear

ATTACKERS: dict[str, type[Attacker]] = {a.name: a for a in (Blind, Linear, Decoder)}


def make(name: str, settings: Mapping[str, Any] | None = None) -> Attacker:
    """An attacker with the given settings.

    Raises:
        UsageError: Unknown name or setting.
    """
    if name not in ATTACKERS:
        raise UsageError(
            f"`attackers` got {name!r}{nearest(name, ATTACKERS)}; "
            f"use some of {', '.join(ATTACKERS)}"
        )
    try:
        return ATTACKERS[name](**(settings or {}))
    except TypeError as error:
        raise UsageError(f"`attackers` got a setting that {name} lacks: {error}") from error
