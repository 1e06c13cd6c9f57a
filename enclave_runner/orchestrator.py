"""Start head and tail worker, watch them, start them again: the part that runs outside.

An enclave cannot start host processes, so both workers are children of this one. It sees
ciphertext, boundary tensors and answers, never a key: weights are unlocked over a client's session.
"""

from __future__ import annotations

import os
import queue
import secrets
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import BackendError, PartoptError, ServiceError, UsageError
from .attestation import LABELS, claimed, verifier
from .bundles.bundle import parts_of, read_bundle
from .client import Client
from .launcher import Started, launch_gramine, launch_python, rendered, resolve_enclave
from .wire import areas
from .wire.addresses import is_loopback
from .wire.messages import TOKEN_BYTES
from .wire.proofs import public_of
from .wire.shm import area_bytes
from .wire.start import Start
from .wire.transport import NAMES, Exchange

MOST_RESTARTS, WITHIN_S = 5, 60.0


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How to serve a bundle.

    Attributes:
        enclave: ``auto``, ``gramine-sgx``, ``gramine-direct`` or ``native``.
        device: ``cpu`` or ``cuda`` for the tail.
        transport: ``shm``, ``tcp`` or ``file``.
        threads: Compute threads of each worker.
        batch: Most images a run.
        in_flight: Frames between head and tail, at most.
        queue: Requests that may wait; more are answered "busy".
        host, port: Where clients connect; port 0 takes any.
        timeout: Seconds until a silent tail is given up.
        clients: Public keys of which a client must have one; none: anybody, on loopback alone.
        accept_tcb: States of an SGX platform that do beside "OK".
    """

    enclave: str = "auto"
    device: str = "cpu"
    transport: str = "shm"
    threads: int = 1
    batch: int = 1
    in_flight: int = 2
    queue: int = 16
    host: str = "127.0.0.1"
    port: int = 0
    timeout: float = 60.0
    clients: tuple[str, ...] = ()
    accept_tcb: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.transport not in NAMES:
            raise UsageError(f"`transport` got {self.transport!r}; use {', '.join(NAMES)}")
        if not self.clients and not is_loopback(self.host):
            raise UsageError(
                f"`listen` got the host {self.host!r}, where anybody could connect; name who may "
                "with --clients FILE"
            )
        for name, most in (("threads", 1024), ("batch", 1024), ("in_flight", 64), ("queue", 4096)):
            if not 1 <= getattr(self, name) <= most:
                raise UsageError(f"`{name}` got {getattr(self, name)}; use 1 to {most}")


class Service:
    """Both workers of a bundle, as a context manager.

    Args:
        folder: The bundle.
        options: How to run it.
        key: The weights' key, to unlock them from here; None leaves that to a client.
        insecure: Accept a head worker that proves nothing.
        with_tail: Start the tail too; otherwise leave a note for `serve_tail` of another process.

    Attributes:
        events: What the workers reported, newest last.
        backend: What the head runs in.
        label: What protection that is.
        started_s, head_started_s: Seconds until both workers, and until the head, were there.

    Raises:
        BundleError, BackendError, ServiceError, SessionError.
    """

    def __init__(
        self,
        folder: Path,
        options: ServeOptions,
        *,
        key: bytes | None,
        insecure: bool = False,
        with_tail: bool = True,
    ) -> None:
        self._with_tail = with_tail
        self._folder, self._options, self._key = folder.resolve(), options, key
        self.bundle = read_bundle(self._folder)
        if options.batch > self.bundle.batch:
            raise UsageError(f"`batch` got {options.batch}; this bundle takes {self.bundle.batch}")
        self._head_part, _ = parts_of(self._folder)
        self.backend = resolve_enclave(options.enclave, signed=self.bundle.mrenclave is not None)
        if self.bundle.seal == "gramine" and self.backend == "native":
            raise BackendError(
                "the weights are in Gramine's encrypted mount; native cannot open it"
            )
        if self.backend != "gramine-sgx" and not insecure:
            raise UsageError(
                f"`enclave` is {self.backend} ({LABELS[self.backend]}); accept that with "
                "--insecure-no-attestation"
            )
        self.label = LABELS[claimed(self.backend, proven=not insecure)]
        self.verify = verifier(self.bundle.mrenclave, insecure=insecure, accept=options.accept_tcb)
        self._secret = secrets.token_bytes(32)  # we are a client of our own, to unlock the weights
        self.exchange = Exchange(
            boundary=self._head_part.outputs,
            answer=self._head_part.answers,
            batch=options.batch,
            slots=options.in_flight,
        )
        identity = self._head_part.weights_sha256[:16]
        self._shm, self._drop = areas.shm_folder(identity), areas.drop_folder(identity)
        self._token = os.urandom(TOKEN_BYTES).hex()
        self.events: deque[dict[str, Any]] = deque(maxlen=1000)
        self._news: queue.Queue[tuple[str, Started | None, dict[str, Any] | None]] = queue.Queue()
        self._head: Started | None = None
        self._tail: Started | None = None
        self._area = -1
        self._port = options.port
        self._tail_port = 0
        self._closing = False
        self._ready, self._failed = threading.Event(), ""
        self._restarts: deque[float] = deque(maxlen=MOST_RESTARTS + 1)
        self.started_s = self.head_started_s = 0.0

    def __enter__(self) -> Service:
        begun = time.perf_counter()
        self._own = tempfile.TemporaryDirectory(prefix="partopt-run-")
        areas.release(self._shm)
        if self.backend != "native" or self._options.transport == "shm" or not self._with_tail:
            areas.claim(self._shm)
        if self.backend != "native" or self._options.transport == "file":
            areas.claim(self._drop)
        try:
            if self.backend != "native":
                self._manifest = rendered(self.backend, self._folder, Path(self._own.name))
            self._start_both()
        except BaseException:
            self.__exit__()
            raise
        self.started_s = time.perf_counter() - begun
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._ready.clear()
        self._news.put(("stop", None, None))
        for worker in (self._head, self._tail):
            if worker is not None:
                worker.stop()
        if self._area >= 0:
            os.close(self._area)
            self._area = -1
        for path in [*self._drop.glob("*"), *([] if self._with_tail else self._shm.glob("*"))]:
            path.unlink(missing_ok=True)
        areas.release(self._shm)
        areas.release(self._drop)
        self._own.cleanup()

    @property
    def address(self) -> tuple[str, int]:
        """Where clients connect."""
        return self._options.host, self._port

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the workers."""
        found = {"head": self._head, "tail": self._tail}
        return {name: w.process.pid for name, w in found.items() if w is not None}

    def client(self, timeout: float = 120.0) -> Client:
        """A new session from this process."""
        part = self._head_part
        host = "127.0.0.1" if self._options.host in ("0.0.0.0", "") else self._options.host
        at = host, self._port
        return Client(at, part.answers, part.limits, self.verify, timeout, self._secret)

    def wait_ready(self, timeout: float = 300.0) -> None:
        """Wait until both workers are there.

        Raises:
            ServiceError: They did not come back.
        """
        if not self._ready.wait(timeout) or self._failed:
            raise ServiceError("start", self._failed or "the workers are not back in time")

    def check(self) -> None:
        """Raise ServiceError if the workers could not be started again."""
        if self._failed:
            raise ServiceError("start", self._failed)

    # ---- starting

    def _start_both(self) -> None:
        area = ""
        if self._options.transport == "shm":
            if self._area >= 0:
                os.close(self._area)
            path, self._area = areas.create(self._shm, area_bytes(self.exchange))
            area = str(path)
        elif self._options.transport == "file":
            area = str(self._drop)
        o = self._options
        self._start = Start(
            transport=o.transport,
            area=area,
            slots=o.in_flight,
            batch=o.batch,
            threads=o.threads,
            queue=o.queue,
            host=o.host,
            port=self._port,
            token=self._token,
            timeout=o.timeout,
            opened=self._key is not None,
            clients=(public_of(self._secret), *o.clients) if o.clients else (),
        )
        begun = time.perf_counter()
        try:
            if self.backend == "native":
                self._head = launch_python("enclave_runner.inside.head", str(self._folder / "head"))
            else:
                self._head = launch_gramine(self.backend, self._folder, self._manifest)
            self._head.control.send(**self._start.to_event())
            event = self._await(self._head, "listening")
            self._port, self._tail_port = int(event["port"]), int(event["tail_port"])
            self.head_started_s = time.perf_counter() - begun
        finally:
            if o.transport == "shm" and self._with_tail:
                os.unlink(area)
        if self._with_tail:
            self._start_tail()
        else:
            note = replace(self._start, port=self._tail_port, device="cpu")
            areas.leave_note(self._shm, note.to_event())
        if self._key is not None:
            with self.client() as client:
                client.unlock(self._key)
        self._listen("head", self._head)
        self._ready.set()

    def _start_tail(self) -> None:
        o = self._options
        fds = (self._area,) if o.transport == "shm" else ()
        self._tail = launch_python("enclave_runner.tail", str(self._folder / "tail"), pass_fds=fds)
        start = replace(
            self._start,
            area=self._start.area if o.transport == "file" else "",
            port=self._tail_port,
            device=o.device,
            descriptor=self._area if o.transport == "shm" else -1,
        )
        self._tail.control.send(**start.to_event())
        self._await(self._tail, "ready")
        self._listen("tail", self._tail)

    def _await(self, worker: Started, wanted: str) -> dict[str, Any]:
        while True:
            event = worker.control.read()
            if event is None:
                last = worker.said().strip().splitlines()[-1:] or ["it said nothing"]
                raise ServiceError("start", f"a worker ended at its start: {last[0][:300]}")
            self.events.append(event)
            if event.get("event") == "failed":
                raise ServiceError("start", f"a worker could not start: {event.get('error')}")
            if event.get("event") == wanted:
                return event

    def _listen(self, name: str, worker: Started) -> None:
        def read() -> None:
            while True:
                try:
                    event = worker.control.read()
                except PartoptError:
                    event = None
                self._news.put((name, worker, event))
                if event is None:
                    return

        threading.Thread(target=read, daemon=True).start()

    # ---- watching

    def _watch(self) -> None:
        while True:
            name, worker, event = self._news.get()
            if self._closing:
                return
            if event is not None:
                self.events.append({"from": name, **event})
            elif worker in (self._head, self._tail):
                try:
                    self._again(name)
                except (PartoptError, OSError) as error:
                    self._failed = f"the {name} worker cannot be started again: {error}"
                    self._ready.set()
                    return

    def _again(self, name: str) -> None:
        """Start the worker that died; a new head needs a new tail too."""
        self._ready.clear()
        self._restarts.append(time.monotonic())
        if len(self._restarts) > MOST_RESTARTS and (
            self._restarts[-1] - self._restarts[0] < WITHIN_S
        ):
            raise ServiceError("start", f"it died {len(self._restarts)} times in a minute")
        self.events.append({"event": "restart", "from": name})
        head, tail = self._head, self._tail
        assert head is not None
        if tail is not None:
            tail.stop(0.5)
        if name == "tail" and head.process.poll() is None:
            try:
                self._start_tail()
            except ServiceError:  # the head may have died meanwhile
                if head.process.poll() is None:
                    raise
            else:
                self._ready.set()
                return
        head.stop(0.5)
        self._start_both()
