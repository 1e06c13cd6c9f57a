"""The head worker: decrypts images, runs the head, hands boundary tensors over, returns answers.

Started by `torch_head` or `ort_head`, which differ in what computes. This is what runs inside the
enclave. Everything that reaches it from outside, the orchestrator, the
tail and unproven clients included, is bounded and checked; it prints nothing, and what it reports
are codes. Threads, all started at once: one for all clients (`listening`), one that computes
(`computing`), one for the tail (`tails`), one that opens weights, one that makes quotes. The worker
ends with any of them.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ...errors import FrameError, PartoptError
from ..program.engine import Engine
from ..program.parts import Part
from ..wire.accepted import REFUSALS, Bounds, owed_bytes, queued_bytes
from ..wire.messages import MAX_HEAD, Control, decode, listen
from ..wire.start import Start, start_from
from ..wire.transport import Exchange
from .clients import Session, Sizes
from .computing import Computing
from .fair import FairQueue
from .listening import Listening, Welcome
from .memory import let_go, trim
from .opening import Weights
from .quote import own_quote
from .reports import Reports, text_of
from .requests import Request
from .tails import Tails

_UNLOCKS, _WRONG_KEYS = 8, 8


class HeadWorker:
    """What clients may ask for, and the threads that do it."""

    def __init__(
        self,
        folder: Path,
        part: Part,
        engine: Engine,
        start: Start,
        backend: str,
        control: Control,
    ) -> None:
        if start.transport == "shm":  # opened once: its name is gone by the time a tail returns
            start = replace(start, descriptor=os.open(start.area, os.O_RDWR))
        self._part, self._start = part, start
        self._backend, self._control = backend, control
        self._reports = Reports(control)
        exchange = Exchange(
            boundary=part.outputs, answer=part.answers, batch=start.batch, slots=start.slots
        )
        self._tails = Tails(exchange, start, control)
        self._weights = Weights(
            folder, part, start, engine, lambda s: control.send(event="unlocked", load_s=s)
        )
        self._waiting: FairQueue[Request] = FairQueue(
            start.queue, queued_bytes(part.limits.image_bytes)
        )
        self._unlocks: queue.Queue[tuple[Session, int, bytes]] = queue.Queue(_UNLOCKS)
        self._used = False

    def run(self) -> None:
        """Open the two ports, say so, and serve until the orchestrator goes."""
        for_clients = listen(self._start.host, self._start.port)
        for_tail = listen()
        _fall_silent()
        for job in self.jobs(for_clients, for_tail):
            threading.Thread(target=self._for_ever, args=(job,), daemon=True).start()
        if self._part.seal == "none":
            self._weights.open(b"")
        self._control.send(
            event="listening",
            port=for_clients.getsockname()[1],
            tail_port=for_tail.getsockname()[1],
        )
        while self._control.read() is not None:
            self._control.send(event="alive")

    def jobs(self, for_clients: socket.socket, for_tail: socket.socket) -> list[Callable[[], None]]:
        """What the worker does, for ever, each in a thread of its own."""
        listening = Listening(for_clients, self._welcome(), self)
        computing = Computing(
            self._part, self._start, self._weights, self._tails, self._waiting, self._control
        )
        return [
            listening.run,
            listening.make_quotes,
            computing.run,
            self._open_weights,
            lambda: self._tails.serve(for_tail),
        ]

    def _for_ever(self, job: Callable[[], None]) -> None:
        """A worker without one of its threads would be deaf: it ends, and is started again."""
        try:
            job()
        except BaseException as error:
            self._control.send(event="failed", error=f"a thread ended: {type(error).__name__}")
        os._exit(1)

    def _welcome(self) -> Welcome:
        bounds, limits = Bounds(), self._part.limits
        answer = sum(layout.nbytes(1) for layout in self._part.answers) + MAX_HEAD
        return Welcome(
            backend=self._backend,
            quote=own_quote if self._backend == "gramine-sgx" else None,
            clients=frozenset(self._start.clients),
            sizes=Sizes(
                coming=limits.image_bytes + MAX_HEAD, going=answer, unproven=bounds.unproven
            ),
            owed=owed_bytes(answer),
            bounds=bounds,
        )

    # ---- what the clients' thread asks

    @property
    def is_open(self) -> bool:
        """Whether the weights are there."""
        return self._weights.program is not None

    def handle(self, session: Session, message: bytes) -> None:
        """See `listening.Service`."""
        head, body = decode(message)
        request, what = head.get("id"), head.get("do")
        if type(request) is not int or not 0 < request < 1 << 53:
            raise FrameError("malformed", "a message has no usable id")
        if what in ("hello", "describe"):
            session.answer(
                {
                    "id": request,
                    "backend": self._backend,
                    "open": self.is_open,
                    "starting": self._start.opened,
                }
            )
        elif what == "unlock":
            self._unlock(session, request, body)
        elif what != "classify":
            session.refuse(request, "unknown", "there is no such request")
        elif not self.is_open and self._start.opened:
            session.refuse(request, "starting", REFUSALS["starting"])
        elif not self.is_open:
            session.refuse(request, "locked", "the weights are sealed; unlock them with their key")
        elif len(body) > self._part.limits.image_bytes:
            session.refuse(request, "too-large", "the image has too many bytes")
        else:
            self._classify(session, request, body)

    def _classify(self, session: Session, request: int, image: bytes) -> None:
        self._used = True
        job = Request(session, request, image)
        assert session.opener is not None
        job.times["decrypt"] = session.opener.decrypt_s
        for other in self._waiting.put(job):
            other.refuse("busy", "the queue is full; ask again later")

    def left(self, session: Session) -> None:
        """See `listening.Service`."""
        self._used = True
        for request in self._waiting.leave(session):
            request.refuse("late", "the client left")

    def refused(self, code: str) -> None:
        """See `listening.Service`."""
        self._reports.refused("client", code)

    def trouble(self, error: Exception) -> None:
        """See `listening.Service`."""
        self._control.send(event="error", kind=type(error).__name__, text=text_of(error))

    def rest(self) -> bool:
        """See `listening.Service`. Gives memory back once nobody waits for anything."""
        idle = self._waiting.is_empty and self._tails.is_idle
        if self._used and idle:
            self._used = False
            trim()
        return self._reports.flush() and idle

    # ---- opening weights

    def _unlock(self, session: Session, request: int, key: bytes) -> None:
        if session.wrong_keys >= _WRONG_KEYS:
            raise FrameError("unexpected", "too many wrong keys")
        session.count(1)
        try:
            self._unlocks.put_nowait((session, request, key))
        except queue.Full:
            session.refuse(request, "busy", "others unlock the weights; ask again later")
            session.count(-1)

    def _open_weights(self) -> None:
        while True:
            session, request, key = self._unlocks.get()
            try:
                self._weights.open(key)
            except PartoptError as error:
                session.wrong_keys += 1
                session.refuse(request, "wrong-key", str(error))
            else:
                session.answer({"id": request, "open": True})
            finally:
                session.count(-1)
            del key


def main(folder: Path, engine: Engine) -> None:
    """Serve until the orchestrator goes."""
    sys.setswitchinterval(5e-4)
    control = Control.dial()
    try:
        start = start_from(control.read())
        let_go()
        engine.prepare(start.threads)
        part = Part.read(folder)
        if start.batch > part.limits.batch:
            raise FrameError("malformed", "the start line asks for a larger batch than exported")
        if part.engine != engine.name:
            raise FrameError("malformed", f"the head is not for the engine {engine.name}")
        HeadWorker(folder, part, engine, start, _backend(), control).run()
    except (PartoptError, OSError, RuntimeError) as error:
        control.send(event="failed", error=f"{type(error).__name__}: {str(error)[:300]}")
    os._exit(0)


def _fall_silent() -> None:
    """Print nothing from now on: a decoder's warning or a traceback tells of a client's image."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)


def _backend() -> str:
    """What this process knows of where it runs; only a quote proves it."""
    kind = Path("/dev/attestation/attestation_type")
    if kind.exists() and Path("/dev/attestation/quote").exists():
        return "gramine-sgx"
    return "gramine-direct" if os.environ.get("PARTOPT_BACKEND") == "gramine" else "native"
