"""What the head worker tells the orchestrator of those it refused: codes, not too many lines."""

from __future__ import annotations

import threading
from collections import Counter

from ..wire.messages import Control
from . import clock

_EVERY_S = 1.0


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
