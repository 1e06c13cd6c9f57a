"""The head worker: decrypts images, runs the head, hands boundary tensors over, returns answers.

    python -m partopt.enclave_runner.inside.head BUNDLE/head

This is what runs inside the enclave. Everything that reaches it from outside, the orchestrator, the
tail and unproven clients included, is bounded and checked; it prints nothing, and what it reports
are codes. Threads: one accepts clients, one reads each client, one computes, one takes answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import queue
import socket
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ...errors import BundleError, FrameError, PartoptError, ServiceError
from ..program.parts import Part, load_program
from ..program.programs import Program
from ..wire.accepted import MAX_CLIENTS
from ..wire.ends import open_end
from ..wire.frames import BOUNDARY, FAILURE, Header
from ..wire.messages import TOKEN_BYTES, Control, decode, encode, listen
from ..wire.session import Channel, accept
from ..wire.start import Start, start_from
from ..wire.transport import End, Exchange, receive_exactly
from .decoding import decoded
from .quote import own_quote

_LOCKED = "locked", "the weights are sealed; unlock them with their key"
_STARTING = "starting", "the weights are being opened; ask again"


@dataclass
class Request:
    """One image of one client. Times in seconds."""

    session: Session
    id: int
    image: bytes
    times: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)


@dataclass
class Run:
    """Requests that go through head and tail together."""

    requests: list[Request]
    handed_over: float = 0.0


class Session:
    """A connected client's session; several threads may answer it."""

    def __init__(self, sock: socket.socket, channel: Channel) -> None:
        self._sock, self.channel, self._lock = sock, channel, threading.Lock()

    def answer(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Encrypt and send; a client that is gone is no error."""
        with self._lock, contextlib.suppress(OSError, FrameError):
            self.channel.send(encode(head, body))

    def refuse(self, request: int, code: str, text: str) -> None:
        """Answer with an error."""
        self.answer({"id": request, "error": code, "text": text})


class HeadWorker:
    """State of the worker between its threads."""

    def __init__(
        self, folder: Path, part: Part, start: Start, backend: str, control: Control
    ) -> None:
        if start.transport == "shm":  # opened once: its name is gone by the time a tail returns
            start = replace(start, descriptor=os.open(start.area, os.O_RDWR))
        self._folder, self._part, self._start = folder, part, start
        self._backend, self._control = backend, control
        self._exchange = Exchange(
            boundary=part.outputs, answer=part.answers, batch=start.batch, slots=start.slots
        )
        self._program: Program | None = None
        self._opened_by = b""
        self._unlocking = threading.Lock()
        self._waiting: queue.Queue[Request] = queue.Queue(start.queue)
        self._slots = threading.Semaphore(start.slots)
        self._flying: dict[int, Run] = {}
        self._guard = threading.Lock()
        self._link: End | None = None
        self._count = 0
        self._clients = threading.Semaphore(MAX_CLIENTS)

    def run(self) -> None:
        """Open the two ports, say so, and serve until the orchestrator goes."""
        for_clients = listen(self._start.host, self._start.port)
        for_tail = listen()
        _fall_silent(self._control)
        jobs: list[tuple[Any, tuple[Any, ...]]] = [
            (self._accept_clients, (for_clients,)),
            (self._accept_tails, (for_tail,)),
            (self._compute, ()),
        ]
        for target, args in jobs:
            threading.Thread(target=target, args=args, daemon=True).start()
        if self._part.seal == "none":
            self._load(b"")
        self._control.send(
            event="listening",
            port=for_clients.getsockname()[1],
            tail_port=for_tail.getsockname()[1],
        )
        while self._control.read() is not None:
            self._control.send(event="alive")

    # ---- clients

    def _accept_clients(self, door: socket.socket) -> None:
        while True:
            sock, _ = door.accept()
            if not self._clients.acquire(blocking=False):
                sock.close()
                continue
            threading.Thread(target=self._serve_client, args=(sock,), daemon=True).start()

    def _serve_client(self, sock: socket.socket) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            quote = own_quote if self._backend == "gramine-sgx" else (lambda _: b"")
            most = self._part.limits.image_bytes + (1 << 16)
            session = Session(sock, accept(sock, self._backend, quote, most))
            while True:
                message = session.channel.receive()
                self._handle(session, message)
        except FrameError as error:
            self._control.send(event="refused", side="client", code=error.code)
        except (OSError, PartoptError):
            pass
        finally:
            self._clients.release()
            sock.close()

    def _handle(self, session: Session, message: bytes) -> None:
        head, body = decode(message)
        request, what = head.get("id"), head.get("do")
        if type(request) is not int or not 0 <= request < 1 << 53:
            raise FrameError("malformed", "a message has no usable id")
        if what == "unlock":
            self._unlock(session, request, body)
        elif what == "describe":
            session.answer(
                {"id": request, "backend": self._backend, "open": self._program is not None}
            )
        elif what != "classify":
            session.refuse(request, "unknown", "there is no such request")
        elif self._program is None:
            session.refuse(request, *(_STARTING if self._start.opened else _LOCKED))
        elif len(body) > self._part.limits.image_bytes:
            session.refuse(request, "too-large", "the image has too many bytes")
        else:
            job = Request(session, request, body)
            job.times["decrypt"] = session.channel.decrypt_s
            try:
                self._waiting.put_nowait(job)
            except queue.Full:
                session.refuse(request, "busy", "the queue is full; ask again later")

    def _unlock(self, session: Session, request: int, key: bytes) -> None:
        try:
            self._load(key)
        except PartoptError as error:
            session.refuse(request, "wrong-key", str(error))
        else:
            session.answer({"id": request, "open": True})

    def _load(self, key: bytes) -> None:
        with self._unlocking:
            digest = hashlib.sha256(key).digest()
            if self._program is not None:
                if self._part.seal != "none" and not hmac.compare_digest(digest, self._opened_by):
                    raise BundleError("the weights are open, and this is not the key that did it")
                return
            begun = time.perf_counter()
            program = load_program(self._folder, self._part, key)
            (layout,) = self._part.inputs
            for batch in {1, self._start.batch}:
                for _ in range(2):
                    program(torch.zeros(layout.at(batch)))
            self._program, self._opened_by = program, digest
            self._control.send(event="unlocked", load_s=time.perf_counter() - begun)

    # ---- head

    def _compute(self) -> None:
        while True:
            batch = [self._waiting.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < self._start.batch:
                    batch.append(self._waiting.get_nowait())
            self._slots.acquire()
            try:
                self._run_head(batch)
            except Exception as error:  # nothing of an image may stop the worker
                self._slots.release()
                self._control.send(event="error", kind=type(error).__name__)
                for request in batch:
                    request.session.refuse(request.id, "internal", type(error).__name__)

    def _run_head(self, batch: list[Request]) -> None:
        assert self._program is not None
        assert self._part.preprocessing is not None
        kept, images = [], []
        for request in batch:
            begun = time.perf_counter()
            request.times["queue"] = begun - request.since
            try:
                images.append(decoded(request.image, self._part.preprocessing, self._part.limits))
            except ServiceError as error:
                request.session.refuse(request.id, error.code, str(error))
                continue
            request.times["preprocess"] = time.perf_counter() - begun
            request.image = b""
            kept.append(request)
        if not kept:
            self._slots.release()
            return
        begun = time.perf_counter()
        tensors = self._program(torch.cat(images))
        for request in kept:
            request.times["head"] = time.perf_counter() - begun
        self._hand_over(Run(kept), tensors)

    def _hand_over(self, run: Run, tensors: tuple[torch.Tensor, ...]) -> None:
        with self._guard:
            link = self._link
            self._count += 1
            number = self._count
            run.handed_over = time.perf_counter()
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

    # ---- tail

    def _accept_tails(self, door: socket.socket) -> None:
        token = bytes.fromhex(self._start.token)
        while True:
            sock, _ = door.accept()
            try:
                sock.settimeout(10.0)
                said = bytes(receive_exactly(sock, TOKEN_BYTES))
                if not hmac.compare_digest(said, token):
                    raise FrameError("forged", "a tail has not the token")
                link = open_end(sock, self._exchange, self._start, head=True)
                sock.sendall(b"G")
            except (FrameError, OSError, ValueError) as error:
                self._control.send(event="error", kind=type(error).__name__)
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
        return first is not None and time.perf_counter() - first.handed_over > self._start.timeout

    def _deliver(self, header: Header, tensors: list[torch.Tensor]) -> None:
        came = time.perf_counter()
        with self._guard:
            run = self._flying.get(header.request)
            if run is None or len(run.requests) != header.batch:
                raise FrameError("unexpected", "an answer belongs to no run that is under way")
            del self._flying[header.request]
        self._slots.release()
        if header.kind == FAILURE:
            self._refuse(run, "tail-failed", "the tail could not compute this; see its log")
            return
        away = came - run.handed_over
        tail = min(header.compute_ns / 1e9, away)
        for i, request in enumerate(run.requests):
            times = {**request.times, "hand-off": away - tail, "tail": tail}
            times["return"] = time.perf_counter() - came
            rows = [
                t[i * (len(t) // header.batch) : (i + 1) * (len(t) // header.batch)]
                for t in tensors
            ]
            times["inside"] = time.perf_counter() - request.since
            body = b"".join(r.contiguous().view(torch.uint8).numpy().tobytes() for r in rows)
            if len(body) > (most := self._part.limits.image_bytes):  # no message holds it
                text = f"the answer has {len(body)} bytes; at most {most} are sent"
                request.session.refuse(request.id, "too-large", text)
                continue
            request.session.answer({"id": request.id, "times": times}, body)

    def _fail(self, number: int, code: str, text: str) -> None:
        with self._guard:
            run = self._flying.pop(number, None)
        if run is not None:
            self._slots.release()
            self._refuse(run, code, text)

    def _refuse(self, run: Run, code: str, text: str) -> None:
        for request in run.requests:
            request.session.refuse(request.id, code, text)


def main(folder: Path) -> None:
    """Serve until the orchestrator goes."""
    sys.setswitchinterval(5e-4)
    control = Control.dial()
    try:
        start = start_from(control.read())
        torch.set_num_threads(start.threads)
        part = Part.read(folder)
        if start.batch > part.limits.batch:
            raise FrameError("malformed", "the start line asks for a larger batch than exported")
        HeadWorker(folder, part, start, _backend(), control).run()
    except (PartoptError, OSError) as error:
        control.send(event="failed", error=f"{type(error).__name__}: {str(error)[:300]}")
    os._exit(0)


def _fall_silent(control: Control) -> None:
    """Print nothing from now on: a decoder's warning, or a traceback, tells of a client's picture.

    An error's class is reported; the host's log gets no more.
    """
    threading.excepthook = lambda args: control.send(event="error", kind=args.exc_type.__name__)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)


def _backend() -> str:
    """What this process knows of where it runs; only a quote proves it."""
    kind = Path("/dev/attestation/attestation_type")
    if kind.exists() and Path("/dev/attestation/quote").exists():
        return "gramine-sgx"
    return "gramine-direct" if os.environ.get("PARTOPT_BACKEND") == "gramine" else "native"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
