"""The tail worker's side of the head worker: runs that are under way there, and their answers."""

from __future__ import annotations

import contextlib
import hmac
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ...errors import FrameError, ServiceError
from ..wire.ends import open_end
from ..wire.frames import BOUNDARY, FAILURE, Header
from ..wire.messages import TOKEN_BYTES, Control
from ..wire.start import Start
from ..wire.transport import End, Exchange
from .clock import now
from .reports import text_of
from .requests import Run

_AT_THE_DOOR, _TOKEN_S = 16, 10.0


class Tails:
    """Whoever is the tail now. One at a time; the next is taken when it is gone.

    Args:
        exchange: What crosses.
        start: How, and the token that a tail says first.
        control: Where to report.
    """

    def __init__(self, exchange: Exchange, start: Start, control: Control) -> None:
        self._exchange, self._start, self._control = exchange, start, control
        self._slots = threading.Semaphore(start.slots)
        self._flying: dict[int, Run] = {}
        self._guard = threading.Lock()
        self._link: End | None = None
        self._count = 0

    @property
    def is_idle(self) -> bool:
        """Whether no run is under way."""
        return not self._flying

    def wait_for_a_slot(self) -> None:
        """Until there is room for a run; `hand_over` or `give_back` ends it."""
        self._slots.acquire()

    def give_back(self) -> None:
        """A slot that no run was handed over in."""
        self._slots.release()

    def hand_over(self, run: Run, tensors: Sequence[np.ndarray]) -> None:
        """Send a run's boundary tensors; its requests are answered, or refused, in any case."""
        with self._guard:
            link = self._link
            self._count += 1
            number = self._count
            run.handed_over = now()
            self._flying[number] = run
        try:
            if link is None:
                raise ServiceError("tail-lost", "no tail worker is there; ask again")
            link.send(BOUNDARY, number, tensors, batch=len(run.requests))
            with self._guard:
                if self._link is not link:  # it broke after we took it: nobody else will notice
                    raise ServiceError("tail-lost", "the tail worker is gone; ask again")
        except ServiceError as error:
            self._fail(number, error.code, str(error))
        except BaseException:
            self._fail(number, "internal", "the head worker failed at the hand-off")
            raise

    def serve(self, door: socket.socket) -> None:
        """Take one tail after the other, for ever."""
        token = bytes.fromhex(self._start.token)
        for sock in knocking(door, token, self._unknown):
            try:
                link = open_end(sock, self._exchange, self._start, head=True)
                sock.sendall(b"G")
            except (FrameError, OSError, ValueError) as error:
                self._unknown(error)
                sock.close()
                continue
            with self._guard:
                self._link = link
            self._control.send(event="tail")
            self._take_answers(link)
            with self._guard:
                self._link = None
                left = list(self._flying)
            link.close()
            for number in left:
                self._fail(number, "tail-lost", "the tail worker is gone; ask again")
            self._control.send(event="tail-lost")

    def _unknown(self, error: Exception) -> None:
        self._control.send(event="error", kind=type(error).__name__, text=text_of(error))

    def _take_answers(self, link: End) -> None:
        """Until the tail is gone, breaks the protocol, or stays silent for too long."""
        try:
            while True:
                got = link.receive(1.0)
                if got is not None:
                    self._deliver(*got)
                elif self._overdue():
                    raise ServiceError("tail-lost", "the tail worker is silent")
        except FrameError as error:
            self._control.send(event="refused", side="tail", code=error.code)
        except ServiceError:
            pass

    def _overdue(self) -> bool:
        with self._guard:
            first = next(iter(self._flying.values()), None)
        return first is not None and now() - first.handed_over > self._start.timeout

    def _deliver(self, header: Header, tensors: list[np.ndarray]) -> None:
        came = now()
        with self._guard:
            run = self._flying.get(header.request)
            if run is None or len(run.requests) != header.batch:
                raise FrameError("unexpected", "an answer belongs to no run that is under way")
            del self._flying[header.request]
        self._slots.release()
        if header.kind == FAILURE:
            run.refuse("tail-failed", "the tail could not compute this; see its log")
            return
        away = came - run.handed_over
        tail = min(header.compute_ns / 1e9, away)
        for i, request in enumerate(run.requests):
            request.times |= {"hand-off": away - tail, "tail": tail}
            request.times["return"] = now() - came
            request.times["inside"] = now() - request.since
            request.answer(_row(tensors, i, header.batch))

    def _fail(self, number: int, code: str, text: str) -> None:
        with self._guard:
            run = self._flying.pop(number, None)
        if run is not None:
            self._slots.release()
            run.refuse(code, text)


def _row(tensors: Sequence[np.ndarray], i: int, batch: int) -> bytes:
    """The bytes of one image's share of a batch's answers."""
    sizes = [len(t) // batch for t in tensors]
    rows = [t[i * n : (i + 1) * n] for t, n in zip(tensors, sizes, strict=True)]
    return b"".join(r.tobytes() for r in rows)


def knocking(
    door: socket.socket, token: bytes, unknown: Callable[[Exception], None]
) -> Iterator[socket.socket]:
    """Connections to `door` that say the token, one at a time; others are hung up on.

    All that wait at the door are listened to at once, so that a silent stranger keeps no tail out.
    """
    door.setblocking(False)
    waiting: dict[socket.socket, tuple[bytearray, float]] = {}

    def hang_up(sock: socket.socket, why: Exception) -> None:
        del waiting[sock]
        sock.close()
        unknown(why)

    def taken(sock: socket.socket, ready: bool) -> bool:
        """Listen to one of those that wait; whether it said the token."""
        said, since = waiting[sock]
        try:
            more = sock.recv(TOKEN_BYTES - len(said)) if ready else None
        except OSError as error:
            hang_up(sock, error)
            return False
        said += more or b""
        if len(said) == TOKEN_BYTES:
            if not hmac.compare_digest(said, token):
                hang_up(sock, FrameError("forged", "a tail has not the token"))
                return False
            del waiting[sock]
            return True
        if more == b"":
            hang_up(sock, FrameError("truncated", "a tail said half of its token"))
        elif now() - since > _TOKEN_S:
            hang_up(sock, TimeoutError("a tail said no token"))
        return False

    try:
        while True:
            poll = select.poll()
            for sock in (door, *waiting):
                poll.register(sock, select.POLLIN)
            ready = {number for number, _ in poll.poll(500 if waiting else None)}
            for sock in list(waiting):
                if taken(sock, sock.fileno() in ready):
                    sock.settimeout(_TOKEN_S)
                    yield sock
            if door.fileno() in ready:
                with contextlib.suppress(OSError):
                    sock, _ = door.accept()
                    sock.setblocking(False)
                    if len(waiting) >= _AT_THE_DOOR:
                        hang_up(next(iter(waiting)), TimeoutError("too many at the tail's door"))
                    waiting[sock] = bytearray(), now()
    finally:
        for sock in waiting:
            sock.close()
