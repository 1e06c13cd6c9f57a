"""What the workers reported: the newest events, and what of them is worth a line.

Whoever connects can make events by the thousand. They neither fill memory nor the log, and they
hide no other: of one kind a few lines a minute are shown, the rest is counted.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

KEPT = 1000
# Lines of one kind that are shown within WITHIN_S; more are counted.
EACH, WITHIN_S = 20, 60.0
_QUIET = frozenset({"alive", "tail", "listening", "ready"})
_KIND = ("event", "from", "side", "code", "kind")
_MOST_KINDS, _MOST_CHARACTERS = 100, 400

Event = dict[str, Any]


@dataclass
class _Minute:
    """How often a kind came since it began to be counted."""

    begun: float
    shown: int = 0
    hidden: int = 0


class Journal:
    """The newest events, and lines for the log. Safe for several threads.

    Iterating gives the events that are kept, oldest first.
    """

    def __init__(self) -> None:
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._fresh: deque[str] = deque(maxlen=KEPT)
        self._minutes: dict[str, _Minute] = {}
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Event]:
        with self._lock:
            return iter(list(self._kept))

    def append(self, event: Event) -> None:
        """Keep an event, and make a line of it unless too many are like it."""
        with self._lock:
            self._kept.append(event)
            if event.get("event") in _QUIET:
                return
            self._counted()
            kind = _line({k: v for k, v in event.items() if k in _KIND})
            if kind not in self._minutes and len(self._minutes) >= _MOST_KINDS:
                kind = "events of other kinds"
            minute = self._minutes.setdefault(kind, _Minute(time.monotonic()))
            if minute.shown < EACH:
                minute.shown += 1
                self._fresh.append(_line(event))
            else:
                minute.hidden += 1

    def fresh(self) -> list[str]:
        """Lines since the last call."""
        with self._lock:
            self._counted()
            lines = list(self._fresh)
            self._fresh.clear()
        return lines

    def _counted(self) -> None:
        """End the minutes that are over, with a line for what they hid."""
        now = time.monotonic()
        for kind, minute in list(self._minutes.items()):
            if now - minute.begun >= WITHIN_S:
                del self._minutes[kind]
                if minute.hidden:
                    self._fresh.append(f"{kind} and {minute.hidden} more within a minute")


def _line(event: Event) -> str:
    return json.dumps(event)[:_MOST_CHARACTERS]
