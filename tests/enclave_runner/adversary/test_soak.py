"""Sixteen honest clients beside each attacker: answered or refused in time, nothing left behind.

Against a service as it is deployed, both workers in processes of their own. The short version runs
each attacker for a moment; ``make test-slow`` for a minute.
"""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from PIL import Image

from partopt.enclave_runner.wire.messages import encode
from partopt.errors import FrameError, ServiceError, SessionError

from .conftest import shaken, until

HONEST, IN_TIME_S = 16, 30.0
KEY = X25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()
HELLO = b"POC1" + KEY + bytes(32)
REFUSED = {"full", "busy", "idle", "late", "head-lost"}


def resident(pid: int) -> int:
    """Resident memory of a process in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(x for x in status.splitlines() if x.startswith("VmRSS:")).split()[1])


def picture(size, **how) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (1, 2, 3)).save(file, how.pop("kind", "PNG"), **how)
    return file.getvalue()


def silent(address, stop) -> None:
    """Connections that say nothing, or a handshake, or a header, and stay."""
    with contextlib.ExitStack() as stack:
        for said in (b"", HELLO[:40], HELLO, HELLO + struct.pack("<IQ", 16 << 20, 0)):
            for _ in range(16):
                with contextlib.suppress(OSError):
                    sock = stack.enter_context(socket.create_connection(address, 5))
                    sock.sendall(said)
        stop.wait()


def storm(address, stop) -> None:
    """Connections as fast as they can be made."""
    while not stop.is_set():
        with contextlib.suppress(OSError), socket.create_connection(address, 5) as sock:
            sock.sendall(HELLO)


def deaf(address, stop) -> None:
    """Asks and asks, and reads no answer."""
    while not stop.is_set():
        with contextlib.suppress(OSError, FrameError, ServiceError, SessionError):
            sock, channel = shaken(address)
            with sock:
                for i in range(1, 10_000):
                    channel.send(encode({"do": "describe", "id": i}))
                    if stop.is_set():
                        break


def greedy(address, stop) -> None:
    """Sends large frames without waiting, and takes the refusals."""
    data = picture((64, 64)) + bytes(1 << 20)
    while not stop.is_set():
        with contextlib.suppress(OSError, FrameError, ServiceError, SessionError, TimeoutError):
            sock, channel = shaken(address)
            with sock:
                for i in range(1, 1000):
                    channel.send(encode({"do": "classify", "id": i}, data[: 1 << 19]))
                    with contextlib.suppress(TimeoutError):
                        while True:
                            channel.receive(0)
                    if stop.is_set():
                        break


def half_frames(address, stop) -> None:
    """Most of a large frame, and then nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            with contextlib.suppress(OSError, FrameError, ServiceError, SessionError):
                sock, channel = shaken(address)
                stack.enter_context(sock)
                sock.settimeout(5)
                sock.sendall(channel._out.seal(bytes(1 << 20))[:-1])
        stop.wait()


def thin(address, stop) -> None:
    """Pictures of few bytes that would be large once resized, or are large already."""
    sizes = [(1, 1500), (1500, 1), (30_000, 100), (2000, 1500)]
    pictures = [picture(size) for size in sizes]
    i = 0
    while not stop.is_set():
        with contextlib.suppress(OSError, FrameError, ServiceError, SessionError, TimeoutError):
            sock, channel = shaken(address)
            with sock:
                while not stop.is_set():
                    i += 1
                    channel.send(encode({"do": "classify", "id": i}, pictures[i % len(pictures)]))
                    channel.receive(20)


def leaving(address, stop) -> None:
    """Asks, and leaves before the answer."""
    data = picture((64, 64))
    while not stop.is_set():
        with contextlib.suppress(OSError, FrameError, ServiceError, SessionError):
            sock, channel = shaken(address)
            with sock:
                channel.send(encode({"do": "classify", "id": 1}, data))


ATTACKERS = [silent, storm, deaf, greedy, half_frames, thin, leaving]


def honest(service, photo, wanted, stop, seen: Counter, slowest: list[float]) -> None:
    """Asks again and again, connects anew where it has to, and counts what it gets."""
    while not stop.is_set():
        begun = time.monotonic()
        try:
            with service.client(timeout=IN_TIME_S) as client:
                while not stop.is_set():
                    begun = time.monotonic()
                    answer = client.classify(photo)
                    seen["right" if torch.equal(answer.tensors[0], wanted) else "wrong"] += 1
                    slowest.append(time.monotonic() - begun)
        except (ServiceError, SessionError) as error:
            seen[getattr(error, "code", str(error))] += 1
            slowest.append(time.monotonic() - begun)
            time.sleep(0.05)


def besieged(service, attacker, photo, wanted, seconds: float) -> Counter:
    stop, seen, slowest = threading.Event(), Counter(), [0.0]
    threads = [threading.Thread(target=attacker, args=(service.address, stop))]
    threads += [
        threading.Thread(target=honest, args=(service, photo, wanted, stop, seen, slowest))
        for _ in range(HONEST)
    ]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    until(lambda: seen["right"] >= HONEST, IN_TIME_S)
    stop.set()
    for thread in threads:
        thread.join(IN_TIME_S + 10)
        assert not thread.is_alive(), "a request was neither answered nor refused"
    assert set(seen) <= {"right", *REFUSED}, seen
    assert seen["right"] >= HONEST, seen
    assert max(slowest) < IN_TIME_S, (attacker.__name__, max(slowest))
    return seen


def siege(made, photo, seconds: float) -> None:
    wanted = made.logits(photo)
    with made.service(queue=32) as service:
        with service.client() as client:
            for _ in range(30):
                client.classify(photo)
        head = service.pids["head"]
        besieged(service, leaving, photo, wanted, 1.0)
        time.sleep(1)
        before = resident(head)
        for attacker in ATTACKERS:
            besieged(service, attacker, photo, wanted, seconds)
            near = until(lambda: resident(head) < 1.1 * before, 25)
            assert near, (attacker.__name__, before, resident(head))
        assert service.pids["head"] == head, "the head never died"
        with service.client() as client:
            assert torch.equal(client.classify(photo).tensors[0], wanted)


def test_a_short_siege(made, photo):
    siege(made, photo, 0.5)


@pytest.mark.slow
def test_a_siege_of_a_minute_by_each(made, photo):
    siege(made, photo, 60.0)
