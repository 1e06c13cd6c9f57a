"""A head worker and its tail in this process, and clients that break the rules."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from dataclasses import replace

import pytest

from partopt.enclave_runner import tail
from partopt.enclave_runner.client import Client
from partopt.enclave_runner.inside.clients import Sizes
from partopt.enclave_runner.inside.head import HeadWorker
from partopt.enclave_runner.inside.listening import Listening, Welcome
from partopt.enclave_runner.orchestrator import ServeOptions, Service
from partopt.enclave_runner.program.parts import Part
from partopt.enclave_runner.wire.accepted import Bounds
from partopt.enclave_runner.wire.ends import open_end
from partopt.enclave_runner.wire.messages import Control, decode, encode, listen
from partopt.enclave_runner.wire.session import Channel, connect
from partopt.enclave_runner.wire.start import Start
from partopt.enclave_runner.wire.transport import Exchange

from ..conftest import engine_of

TOKEN = "ab" * 16
SIZES = Sizes(coming=1 << 20, going=1 << 20, unproven=1 << 16)
QUICK = Bounds(handshake=0.6, quote=5.0, frame=0.6, idle=30.0, spare=0.2, stalled=0.6)


def until(true, seconds: float = 10.0) -> bool:
    """Whether something becomes true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


class Lines:
    """The orchestrator's end of a control connection: what the worker reported."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.control, self.said = Control(theirs), []
        self._ours = Control(ours)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while (line := self._ours.read()) is not None:
            self.said.append(line)

    def codes(self) -> set[str]:
        return {line["code"] for line in self.said if line.get("event") == "refused"}


class Inside:
    """A head worker of `made` with a tail, by loopback connections, in threads of this process."""

    def __init__(self, made, *, bounds=QUICK, with_tail=True, unlocked=True, **start) -> None:
        self.made, self.lines = made, Lines()
        self.part = Part.read(made.folder / "head")
        settings = {"transport": "tcp", "area": "", "slots": 2, "batch": 1, "threads": 1}
        settings |= {"queue": 16, "host": "127.0.0.1", "port": 0, "token": TOKEN, **start}
        self.start = Start(**settings)
        self.worker = HeadWorker(
            made.folder / "head",
            self.part,
            engine_of(self.part),
            self.start,
            "native",
            self.lines.control,
        )
        welcome = replace(self.worker._welcome(), bounds=bounds)
        self.worker._welcome = lambda: welcome
        if unlocked:
            self.worker._weights.open(made.key)
        door, self.for_tail = listen(), listen()
        self.address = door.getsockname()
        jobs = self.worker.jobs(door, self.for_tail)
        self.listening: Listening = jobs[0].__self__
        for job in jobs:
            threading.Thread(target=job, daemon=True).start()
        if with_tail:
            threading.Thread(target=self._be_the_tail, daemon=True).start()
            assert until(lambda: any(x.get("event") == "tail" for x in self.lines.said))

    def _be_the_tail(self) -> None:
        part = Part.read(self.made.folder / "tail")
        run = tail.loaded(self.made.folder / "tail", part, self.start)
        exchange = Exchange(
            boundary=self.part.outputs,
            answer=self.part.answers,
            batch=self.start.batch,
            slots=self.start.slots,
        )
        with socket.create_connection(self.for_tail.getsockname()) as sock:
            sock.sendall(bytes.fromhex(TOKEN))
            assert sock.recv(1) == b"G"
            tail.serve(open_end(sock, exchange, self.start, head=False), run)

    def client(self, timeout: float = 20.0, secret: bytes | None = None) -> Client:
        part = self.part
        return Client(self.address, part.answers, part.limits, lambda hello: None, timeout, secret)

    def raw(self) -> tuple[socket.socket, Channel]:
        return shaken(self.address)


class Deployed:
    """The same as a service runs it: workers in processes of their own, the usual deadlines."""

    def __init__(self, made, *, unlocked=True, **options) -> None:
        options = ServeOptions(enclave=made.enclave, **options)
        key = made.key if unlocked else None
        self._service = Service(made.folder, options, key=key, insecure=True)
        self._service.__enter__()
        self.address, self.lines = self._service.address, self

    def client(self, timeout: float = 60.0) -> Client:
        return self._service.client(timeout)

    def raw(self) -> tuple[socket.socket, Channel]:
        return shaken(self.address)

    def codes(self) -> set[str]:
        return {e["code"] for e in self._service.events if e.get("event") == "refused"}

    def end(self) -> None:
        self._service.__exit__()


@pytest.fixture(scope="module")
def worker(made):
    """A worker for tests that look at it from outside alone: deployed, where that is asked for."""
    found = Inside(made) if made.enclave == "native" else Deployed(made)
    yield found
    if isinstance(found, Deployed):
        found.end()


@pytest.fixture
def start_worker(made):
    deployed = []

    def start(**how):
        if made.enclave == "native":
            return Inside(made, **how)
        deployed.append(Deployed(made, **how))
        return deployed[-1]

    yield start
    for one in deployed:
        one.end()


@pytest.fixture(scope="module")
def inside(made):
    """A worker with quick deadlines, shared by a module's tests."""
    return Inside(made)


@pytest.fixture
def start_inside(made):
    return lambda **how: Inside(made, **how)


class Echo:
    """A service without a network: answers as it is told to; ``stay`` is never answered."""

    def __init__(self) -> None:
        self.is_open, self.refusals, self.troubles, self.gone = True, [], [], []

    def handle(self, session, message) -> None:
        head, _ = decode(message)
        if head["do"] == "stay":
            session.count(1)
        elif head["do"] == "hello":
            session.answer({"id": head["id"], "open": True})
        else:
            session.answer({"id": head["id"], "times": {}}, bytes(head.get("bytes", 1)))

    def left(self, session) -> None:
        self.gone.append(session)

    def refused(self, code: str) -> None:
        self.refusals.append(code)

    def trouble(self, error) -> None:
        self.troubles.append(error)

    def rest(self) -> bool:
        return True


class Echoing:
    """A listening port of `Echo`."""

    def __init__(self, *, bounds=QUICK, quote=None, clients=frozenset(), owed=1 << 20) -> None:
        self.service = Echo()
        welcome = Welcome(
            backend="native",
            quote=quote,
            clients=clients,
            sizes=SIZES,
            owed=owed,
            bounds=bounds,
        )
        door = listen()
        self.address = door.getsockname()
        self.listening = Listening(door, welcome, self.service)
        threading.Thread(target=self.listening.run, daemon=True).start()
        if quote is not None:
            threading.Thread(target=self.listening.make_quotes, daemon=True).start()

    def sessions(self) -> int:
        return len(self.listening._sessions)


def shaken(address, verify=lambda hello: None) -> tuple[socket.socket, Channel]:
    """A connection whose handshake is done."""
    sock = socket.create_connection(address, 10)
    try:
        channel, _ = connect(sock, verify, SIZES.coming)
    except BaseException:
        sock.close()
        raise
    return sock, channel


def ask(channel: Channel, what: str, number: int = 1, timeout: float = 10.0, **more) -> dict:
    """Ask and wait for the answer's head."""
    channel.send(encode({"do": what, "id": number, **more}))
    return decode(channel.receive(timeout))[0]


@contextlib.contextmanager
def many(count: int, address, said: bytes = b""):
    """Connections that say something and then nothing."""
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(address, 10))
            with contextlib.suppress(OSError):
                sock.sendall(said)
            socks.append(sock)
        yield socks


def closed(sock: socket.socket, seconds: float = 5.0) -> bool:
    """Whether the other side hangs up in time, whatever it says before."""
    sock.settimeout(seconds)
    try:
        while sock.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def fake_head(answer: dict) -> tuple[str, int]:
    """Somebody who answers a handshake with whatever he likes; its address."""
    door = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with door, door.accept()[0] as sock:
            sock.recv(68)
            raw = json.dumps(answer).encode()
            sock.sendall(struct.pack("<I", len(raw)) + raw)
            sock.recv(1)

    threading.Thread(target=serve, daemon=True).start()
    return door.getsockname()
