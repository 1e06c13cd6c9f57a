"""What the head worker tells the orchestrator of those it refused: codes, not too many lines."""

from __future__ import annotations

import os
import threading
from collections import Counter

from ...errors import PartoptError
from ..wire.messages import Control
from . import clock

_EVERY_S = 1.0


def text_of(error: Exception) -> str:
    """What the operator may read of an error that is ours: it tells nothing of a client's image.

    Our own sentences, and which file or module is missing; what else a library says of an image,
    or of numbers made of it, stays inside.
    """
    if isinstance(error, PartoptError):
        return str(error)[:300]
    if isinstance(error, OSError) and error.errno is not None:
        return f"{os.strerror(error.errno)}: {error.filename or 'no file'}"[:300]
    if isinstance(error, ImportError):
        return f"cannot import {error.name}"[:300]
    return ""


class Reports:
    """One line for each side and code in a second, with how many there were."""

    def __init__(self, control: Control) -> None:
        self._control, self._lock = control, threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._last: dict[tuple[str, str], float] = {}

    def refused(self, side: str, code: str) -> None:
        """Somebody was refused."""
        with self._lock:
            self._counts[side, code] += 1
        self.flush()

    def flush(self) -> bool:
        """Send the lines that are due; whether none is left."""
        now = clock.now()
        with self._lock:
            due = [k for k in self._counts if now - self._last.get(k, -_EVERY_S) >= _EVERY_S]
            lines = [(k, self._counts.pop(k)) for k in due]
            self._last |= dict.fromkeys(due, now)
        for (side, code), count in lines:
            self._control.send(event="refused", side=side, code=code, count=count)
        return not self._counts
