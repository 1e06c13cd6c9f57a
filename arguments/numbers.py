"""Checks of arguments that many commands share; each error names the range that is allowed."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from ..errors import UsageError

MOST_SEED = 2**32 - 1
MOST_THREADS = 64  # or the machine's cores, where it has more
MOST_WORKERS = 64
SIZES = (16, 4096)  # sides of a model's input, in pixels; SSIM's window takes 11 of them


def whole(name: str, value: int | None, least: int, most: int | None = None) -> None:
    """Hold a whole number against its range; None passes.

    Raises:
        UsageError: It is outside.
    """
    if value is None or (least <= value and (most is None or value <= most)):
        return
    allowed = f"{least} or more" if most is None else f"{least} to {most}"
    raise UsageError(f"`{name}` got {value}; use {allowed}")


def above_zero(name: str, value: float | None, what: str) -> None:
    """Hold a number that must be finite and above 0; None passes.

    Raises:
        UsageError: It is not; `what` says what the number is.
    """
    if value is not None and not 0 < value < math.inf:
        raise UsageError(f"`{name}` got {value}; use {what} above 0")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(value: int | None, name: str = "threads") -> None:
    """Hold a number of compute threads against what a process can start.

    Raises:
        UsageError: It is outside.
    """
    most = max(MOST_THREADS, cores())
    if value is not None and not 1 <= value <= most:
        raise UsageError(
            f"`{name}` got {value}; use 1 to {most} (this machine offers {cores()} cores)"
        )


def seed(value: int | None) -> None:
    """Hold a seed against the range that every generator takes.

    Raises:
        UsageError: It is outside.
    """
    whole("seed", value, 0, MOST_SEED)


def names(argument: str, given: str | Sequence[str] | None) -> list[str] | None:
    """Names separated by commas, or given one by one, without spaces around them; None passes.

    Raises:
        UsageError: A name is empty or comes twice.
    """
    if given is None:
        return None
    asked = given.split(",") if isinstance(given, str) else given
    parts = [part.strip() for part in asked]
    if not all(parts) or not parts:
        raise UsageError(
            f"`{argument}` got {given!r}, in which a name is empty; separate names by single commas"
        )
    twice = next((p for i, p in enumerate(parts) if p in parts[:i]), None)
    if twice is not None:
        raise UsageError(f"`{argument}` got {twice!r} twice; name each once")
    return parts
