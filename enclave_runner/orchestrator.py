"""Start head and tail worker, watch them, start them again: the part that runs outside.

An enclave cannot start host processes, so both workers are children of this one. It sees
ciphertext, boundary tensors and answers, never a key: weights are unlocked over a client's session.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

from ..errors import BackendError, PartoptError, ServiceError, UsageError
from . import notes
from .attestation import LABELS, claimed, verifier
from .bundles.bundle import FILE, digest, parts_of, read_bundle
from .bundles.needs import head_module
from .client import Client
from .hearing import EVERY_S, Hearing, News, Worker
from .journal import Journal
from .launcher import Started, launch_gramine, launch_python, rendered, resolve_enclave
from .meeting import Meeting
from .serve_options import ServeOptions as ServeOptions
from .wire.messages import TOKEN_BYTES
from .wire.proofs import public_of
from .wire.start import Start
from .wire.transport import Exchange

MOST_RESTARTS, WITHIN_S = 5, 60.0
_ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
_LOCKED = "the head worker's weights are sealed; give their key with partopt unlock"


class Service:
    """Both workers of a bundle, as a context manager.

    Args:
        folder: The bundle.
        options: How to run it.
        key: The weights' key, to unlock them from here; None leaves that to a client.
        insecure: Accept a head worker that proves nothing.
        with_tail: Start the tail too; otherwise leave a note for `serve_tail` of another process.

    Attributes:
        events: What the workers reported, newest last, and lines of it for a log.
        backend: What the head runs in.
        label: What protection that is.
        ended: What leaving did, one sentence each.
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
        self._start = Start(
            transport=options.transport,
            area="",
            slots=options.in_flight,
            batch=options.batch,
            threads=options.threads,
            queue=options.queue,
            host=options.host,
            port=options.port,
            token=os.urandom(TOKEN_BYTES).hex(),
            timeout=options.timeout,
            opened=key is not None or self._head_part.seal == "none",
            clients=(public_of(self._secret), *options.clients) if options.clients else (),
        )
        self._token = self._start.token
        self.meeting = Meeting(
            self._head_part.weights_sha256[:16],
            self._start,
            self.exchange,
            enclave=self.backend != "native",
            apart=not with_tail,
        )
        self._manifest = Path()
        self.events = Journal()
        self._hearing = Hearing(lambda name, event: self.events.append({"from": name, **event}))
        self._head: Worker | None = None
        self._tail: Worker | None = None
        self._port, self._tail_port, self._notes = options.port, 0, 0
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._ready, self._failed = threading.Event(), ""
        self._restarts: deque[float] = deque(maxlen=MOST_RESTARTS + 1)
        self.started_s = self.head_started_s = 0.0
        self.ended: list[str] = []

    def __enter__(self) -> Service:
        begun = time.perf_counter()
        try:
            self.meeting.take()
            if self.backend != "native":
                self._manifest = rendered(self.backend, self._folder, self.meeting.scratch)
            self._start_both()
            self.started_s = time.perf_counter() - begun
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._ready.clear()
        self._hearing.stop()
        self._stop()
        if self._thread is not None:  # it may be starting one
            self._thread.join()
            self._thread = None
            self._stop()
        self.ended += self.meeting.leave()

    def _stop(self) -> None:
        """End both workers, however they are."""
        workers = [w for w in (self._head, self._tail) if w is not None]
        self._head = self._tail = None
        for worker in workers:
            worker.started.control.close()
        for worker in workers:
            killed = worker.started.stop()
            self.ended.append(f"{'killed' if killed else 'ended'} the {worker.name} worker")

    @property
    def address(self) -> tuple[str, int]:
        """Where clients connect."""
        return self._options.host, self._port

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the workers."""
        found = {"head": self._head, "tail": self._tail}
        return {name: w.pid for name, w in found.items() if w is not None}

    def client(self, timeout: float = 120.0) -> Client:
        """A new session from this process."""
        part = self._head_part
        at = _ANY.get(self._options.host, self._options.host), self._port
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
        self._start = replace(self._start, area=self.meeting.renew(), port=self._port)
        begun = time.perf_counter()
        try:
            self._head = head = self._hearing.hear("head", self._launch_head())
            head.started.control.send(**self._start.to_event())
            event = self._hearing.wait(head, "listening", self._options.start_timeout)
            self._port, self._tail_port = int(event["port"]), int(event["tail_port"])
            self.head_started_s = time.perf_counter() - begun
        finally:
            self.meeting.hide()
        if self._key is not None:
            with self.client() as client:
                client.unlock(self._key)
        elif not self._start.opened:
            self.events.append({"from": "head", "event": "locked", "text": _LOCKED})
        if self._with_tail:
            self._start_tail()
        else:
            self._leave_note()
        self._ready.set()

    def _launch_head(self) -> Started:
        how = self._options.how("head", self._closing)
        if self.backend == "native":
            return launch_python(head_module(self._head_part), str(self._folder / "head"), how=how)
        return launch_gramine(self.backend, self._folder, self._manifest, how)

    def _start_tail(self) -> None:
        o, head = self._options, self._head
        if head is None:
            raise ServiceError("start", "the service is ending")
        shared = self.meeting.descriptor
        how = o.how("tail", self._closing)
        folder = str(self._folder / "tail")
        started = launch_python(
            "enclave_runner.tail", folder, pass_fds=() if shared < 0 else (shared,), how=how
        )
        self._tail = tail = self._hearing.hear("tail", started)
        start = replace(
            self._start,
            area=self._start.area if o.transport == "file" else "",
            port=self._tail_port,
            device=o.device,
            descriptor=shared,
        )
        tail.started.control.send(**start.to_event())
        self._hearing.wait(tail, "ready", o.start_timeout, needed=head)
        if not head.linked.wait(10.0):
            raise ServiceError("start", "the head worker did not take the tail")

    def _leave_note(self) -> None:
        """For the tail's own service: it starts a tail for this note, and none for an older one."""
        assert self.meeting.shm is not None
        self._notes += 1
        start = replace(self._start, port=self._tail_port, device="cpu")
        notes.leave(self.meeting.shm, start, digest(self._folder / FILE), self._notes)

    # ---- watching

    def _watch(self) -> None:
        every = min(EVERY_S, self._options.timeout / 4)
        ask_at = time.monotonic() + every
        while not self._closing.is_set():
            news = self._hearing.next(ask_at - time.monotonic())
            fallen = None if news is None else self._fallen(news)
            if time.monotonic() >= ask_at:
                ask_at = time.monotonic() + every
                fallen = fallen or self._silent(every)
            if fallen is None or self._closing.is_set():
                continue
            try:
                self._again(fallen)
            except (PartoptError, OSError) as error:
                if not self._closing.is_set():
                    self._failed = f"the {fallen} worker cannot be started again: {error}"
                    self._ready.set()
                return

    def _fallen(self, news: News) -> str | None:
        """The worker that has to be started again after such news."""
        worker = news.worker
        if worker is None or worker not in (self._head, self._tail):
            return None
        if news.event is None:
            self._say("ended", worker.name, worker.how_it_ended())
            return worker.name
        if news.event.get("event") != "tail-lost" or worker.linked.is_set():
            return None
        if not self._with_tail:
            self._leave_note()
            return None
        return "tail"  # it may still be there, and hang

    def _silent(self, every: float) -> str | None:
        """A worker that has not said for too long that it lives; ask them all."""
        for worker in (self._head, self._tail):
            if worker is not None and worker.unanswered * every > self._options.timeout:
                return worker.name
            if worker is not None:
                worker.ask()
        return None

    def _say(self, event: str, name: str, text: str) -> None:
        self.events.append({"from": name, "event": event, "text": text[:300]})

    def _again(self, name: str) -> None:
        """Start the worker that died or hangs; a new head needs a new tail too.

        Raises:
            ServiceError: That failed too often.
        """
        self._ready.clear()
        last, failures = "", 0
        while not self._closing.is_set():
            self._restarts.append(time.monotonic())
            full = len(self._restarts) > MOST_RESTARTS
            if full and self._restarts[-1] - self._restarts[0] < WITHIN_S:
                times = len(self._restarts)
                raise ServiceError("start", f"it died {times} times in a minute{last}")
            if failures > MOST_RESTARTS:
                raise ServiceError("start", f"{failures} starts failed{last}")
            self.events.append({"event": "restart", "from": name})
            try:
                self._restart(name)
            except (PartoptError, OSError) as error:
                failures, last = failures + 1, f", at last: {error}"
                if not self._closing.is_set():
                    self._say("start-failed", name, str(error))
                self._closing.wait(min(0.1 * 2**failures, 5.0))
            else:
                self._ready.set()
                return

    def _restart(self, name: str) -> None:
        head, tail = self._head, self._tail
        if tail is not None:
            self._end(tail)
        if name == "tail" and head is not None and not head.ended:
            self._start_tail()
            return
        if head is not None:
            if name == "tail":  # both died, and only the tail's end was told so far
                self._say("ended", head.name, head.how_it_ended())
            self._end(head)
        self._start_both()

    def _end(self, worker: Worker) -> None:
        there = not worker.ended  # it hangs up once we do
        if worker.started.stop(0.5) and there:
            self._say("hung", worker.name, f"the {worker.name} worker was silent and is killed")
        worker.ended = True
