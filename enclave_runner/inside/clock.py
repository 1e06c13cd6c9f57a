"""The worker's own time, by which its deadlines go: it never goes back, and it knows no leaps.

Inside Gramine every clock is the machine's wall clock, which the host may set, and any host may
stop the worker for a while. Neither may end a session or let a deadline wait for an hour, so a step
of the machine's clock counts as far as it may be time in which the worker ran: not backwards, and
forwards no more than a little, since somebody looks at this clock several times a second while
there is anything to wait for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LEAP_S = 1.0


class Clock:
    """Seconds, from 1 on. Safe for several threads.

    Args:
        tell: The machine's clock, in seconds.
    """

    def __init__(self, tell: Callable[[], float] = time.perf_counter) -> None:
        self._tell, self._lock = tell, threading.Lock()
        self._last, self._now = tell(), 1.0

    def now(self) -> float:
        """Seconds; never fewer than before, and at most `LEAP_S` more than at the last look."""
        with self._lock:
            told = self._tell()
            self._now += min(max(told - self._last, 0.0), LEAP_S)
            self._last = told
            return self._now


now = Clock().now
