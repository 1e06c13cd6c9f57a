"""JSON of somebody else's, as plain data: bounded before it is read, and with one meaning only."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, NoReturn

from ...errors import BundleError

MAX_DEPTH = 32


def bounded(path: Path, most: int) -> bytes:
    """The bytes of a file of at most `most` bytes.

    Raises:
        BundleError: Missing or larger.
    """
    name = f"{path.parent.name}/{path.name}"
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would keep its reader waiting
            raise BundleError(f"{name} is no file")
        # No more than there is: a buffer is made for all that is asked for.
        with open(path, "rb") as file:
            data = file.read(min(found.st_size, most) + 1)
    except OSError as error:
        raise BundleError(f"{name} cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise BundleError(f"{name} has more than {most} bytes")
    return data


def parsed(raw: str | bytes, name: str) -> Any:
    """What the JSON text of the file `name` says.

    Raises:
        BundleError: No JSON, a key given twice (readers differ in which they take), a number that
            is none, or nesting deeper than `MAX_DEPTH`.
    """
    try:
        found = json.loads(raw, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        if isinstance(error, BundleError):
            raise BundleError(f"{name!r} {error}; export again") from None
        raise BundleError(f"{name!r} cannot be read as JSON; export again") from None
    if _deep(found):
        raise BundleError(f"{name!r} nests deeper than {MAX_DEPTH} levels; export again")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise BundleError(f"has the key {name[:60]!r} twice")
        found[name] = value
    return found


def _no_number(text: str) -> NoReturn:
    raise BundleError(f"holds {text}, which is no JSON number")


def _deep(value: Any) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        lists = (v.values() if isinstance(v, dict) else v for v in level)
        level = [v for inner in lists for v in inner if isinstance(v, (dict, list))]
        if not level:
            return False
    return True
