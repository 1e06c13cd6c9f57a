"""Hear what workers say, with a time limit on everything that is waited for."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import PartoptError, ServiceError
from .launcher import Started

Event = dict[str, Any]
# A worker is asked whether it lives so often, in seconds.
EVERY_S = 5.0


@dataclass(eq=False)
class Worker:
    """A started worker under its name, ``head`` or ``tail``.

    Attributes:
        ended: It hung up: whatever it was, it is no worker any more.
        unanswered: How often it was asked whether it lives since it last said anything.
        linked: Of a head: whether a tail is there.
    """

    name: str
    started: Started
    ended: bool = False
    unanswered: int = 0
    linked: threading.Event = field(default_factory=threading.Event)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.started.process.pid

    def said(self) -> str:
        """The last of what it printed."""
        return self.started.said()

    def ask(self) -> None:
        """Ask whether it lives."""
        self.unanswered += 1
        self.started.control.send(do="say")

    def how_it_ended(self) -> str:
        """Its exit status and the last that it printed."""
        # Its connections end before it does.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.started.process.wait(1.0)
        status = self.started.process.poll()
        how = "" if status is None else f" (exit status {status})"
        return f"the {self.name} worker ended{how}: {self.started.output.last_line()}"


@dataclass(frozen=True)
class News:
    """Something that a worker said; no event where it hung up, no worker where we are to stop."""

    worker: Worker | None
    event: Event | None


class Hearing:
    """All that several workers say, in one queue.

    Args:
        note: Told each event, with the name of its worker.
    """

    def __init__(self, note: Callable[[str, Event], None]) -> None:
        self._news: queue.Queue[News] = queue.Queue()
        self._note = note

    def hear(self, name: str, started: Started) -> Worker:
        """Listen to a worker from now on."""
        worker = Worker(name, started)
        threading.Thread(target=self._read, args=(worker,), daemon=True).start()
        return worker

    def stop(self) -> None:
        """Let whoever waits stop."""
        self._news.put(News(None, None))

    def next(self, seconds: float) -> News | None:
        """What was said next, or None after so many seconds."""
        try:
            return self._news.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None

    def wait(
        self, worker: Worker, wanted: str, seconds: float, needed: Worker | None = None
    ) -> Event:
        """Wait until `worker` says `wanted`; so long, nobody else is needed but `needed`.

        Raises:
            ServiceError: It ended, failed or said nothing in time, or `needed` ended.
        """
        end = time.monotonic() + seconds
        while True:
            news = self.next(end - time.monotonic())
            if news is None:
                raise ServiceError(
                    "start",
                    f"the {worker.name} worker was not there within {seconds:.0f} s (it is "
                    "stopped, hangs in a driver, or needs a longer --start-timeout)",
                )
            if news.worker is None:
                self.stop()
                raise ServiceError("start", "the service is ending")
            if news.worker in (worker, needed) and news.event is None:
                raise ServiceError("start", news.worker.how_it_ended())
            if news.worker is worker and news.event is not None:
                if news.event.get("event") == "failed":
                    error = str(news.event.get("error"))[:300]
                    raise ServiceError("start", f"a worker could not start: {error}")
                if news.event.get("event") == wanted:
                    return news.event

    def _read(self, worker: Worker) -> None:
        while not worker.ended:
            try:
                event = worker.started.control.read()
            except PartoptError:
                event = None
            worker.unanswered = 0
            if event is None:
                worker.ended = True
            else:
                what = event.get("event")
                if what == "alive":
                    continue
                if what == "tail":
                    worker.linked.set()
                elif what == "tail-lost":
                    worker.linked.clear()
                self._note(worker.name, event)
            self._news.put(News(worker, event))
