"""What a head worker's service leaves for the tail worker's service, where both run apart."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .wire import areas
from .wire.start import Start

_NOTE, _TAKEN = "note", "taken"
_MOST_BYTES = 1 << 16


def leave(place: areas.Place, start: Start, bundle: str, number: int) -> None:
    """Tell a tail of the same bundle how to start.

    Args:
        place: The service's place in shared memory.
        start: The tail's start line.
        bundle: Digest of ``bundle.json``.
        number: Of the note: a tail of an older one starts again.
    """
    path = place.path(_NOTE)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"bundle": bundle, "number": number, "start": start.to_event()}, file)
    os.replace(temporary, path)


@dataclass(frozen=True)
class Note:
    """The note of one service in the folder that services of its bundle share."""

    home: Path
    instance: str

    def read(self, bundle: str) -> dict[str, Any] | None:
        """What it says; None where there is none any more, or it is another bundle's."""
        try:
            with open(self.home / f"{self.instance}.{_NOTE}", "rb") as file:
                found = json.loads(file.read(_MOST_BYTES))
        except (OSError, ValueError):
            return None
        fits = isinstance(found, dict) and found.get("bundle") == bundle
        return found if fits and areas.alive(self.home, self.instance) else None


@contextlib.contextmanager
def taken(home: Path, bundle: str) -> Iterator[Note | None]:
    """A note of `bundle` in `home` that no other tail's service has taken, or None."""
    for path in sorted(home.glob(f"*.{_NOTE}")):
        note = Note(home, path.name.partition(".")[0])
        if note.read(bundle) is None:
            continue
        try:
            lock = os.open(
                home / f"{note.instance}.{_TAKEN}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        try:
            yield note
        finally:
            os.close(lock)
        return
    yield None
