"""Hand-off of boundary tensors and answers between the two workers: one interface, three ways.

A *door* (a loopback TCP connection) tells each side that something has come, or that the other is
gone; ``tcp`` sends the tensors through it, ``shm`` and ``file`` put them elsewhere. Inside Gramine
neither Unix sockets, FIFOs nor shared semaphores reach the host, a loopback connection does.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...errors import FrameError, ServiceError
from .frames import ANSWER, BOUNDARY, FAILURE, Expected, Header, check_whole
from .layouts import Layout, room

NAMES = ("shm", "tcp", "file")
MAX_SLOTS = 64
SPIN_S = 200e-6


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What crosses: tensors each way, the largest batch, and how many frames may be under way."""

    boundary: tuple[Layout, ...]
    answer: tuple[Layout, ...]
    batch: int
    slots: int

    def rooms(self, layouts: Sequence[Layout]) -> dict[int, int]:
        """Body bytes for each batch size."""
        return {n: room(layouts, n) for n in range(1, self.batch + 1)}


@dataclass(frozen=True, kw_only=True)
class Side:
    """Whose side of the hand-off: the head worker's or not, of which service.

    Attributes:
        head: Whether this is the head worker's side.
        instance: The service, in every frame.
        spin: Seconds to poll before blocking.
    """

    head: bool
    instance: int
    spin: float


def lost(who: str) -> ServiceError:
    """The error for a peer that is gone."""
    return ServiceError(f"{who}-lost", f"the {who} worker is gone; it is started again, ask again")


class End(ABC):
    """One side of the hand-off. Not safe for two threads in the same direction.

    Args:
        door: Connected socket to the other side.
        exchange: What crosses.
        side: Whose side this is.
    """

    def __init__(self, door: socket.socket, exchange: Exchange, side: Side) -> None:
        head = side.head
        self.door, self.exchange, self.head, self.spin = door, exchange, head, side.spin
        self._instance = side.instance
        self.sent = 0
        self.peer = "tail" if head else "head"
        kinds = (ANSWER, FAILURE) if head else (BOUNDARY,)
        self.outgoing = exchange.boundary if head else exchange.answer
        self.incoming = exchange.answer if head else exchange.boundary
        self.expected = Expected(kinds, exchange.rooms(self.incoming), side.instance)
        self._rooms = exchange.rooms(self.outgoing)
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        door.setblocking(False)
        self._poll = select.poll()
        self._poll.register(door, select.POLLIN)

    def send(
        self,
        kind: int,
        request: int,
        tensors: Sequence[np.ndarray],
        *,
        batch: int,
        compute_ns: int = 0,
    ) -> None:
        """Hand over `tensors` (shapes as agreed, for `batch` images), or none with FAILURE.

        Raises:
            FrameError: Tensors of other shapes than agreed.
            ServiceError: The other side is gone.
        """
        layouts = self.outgoing if kind != FAILURE else ()
        for tensor, layout in zip(tensors, layouts, strict=True):
            if tuple(tensor.shape) != layout.at(batch):
                raise FrameError(
                    "malformed",
                    f"{layout.name!r} has shape {tuple(tensor.shape)}, not {layout.at(batch)}",
                )
        self.sent += 1
        length = self._rooms[batch] if layouts else 0
        header = Header(
            kind=kind,
            batch=batch,
            instance=self._instance,
            number=self.sent,
            request=request,
            compute_ns=compute_ns,
            length=length,
            crc=0,
        )
        with self._lost_if_broken():
            self._put(header, tensors)

    @contextlib.contextmanager
    def _lost_if_broken(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise lost(self.peer) from error

    @abstractmethod
    def _put(self, header: Header, tensors: Sequence[np.ndarray]) -> None:
        """Store and announce one frame."""

    @abstractmethod
    def receive(self, timeout: float | None = None) -> tuple[Header, list[np.ndarray]] | None:
        """Wait for the next frame; None after `timeout` seconds.

        The tail gets tensors that are good until it answers; the head gets private copies.

        Raises:
            FrameError: The frame is refused.
            ServiceError: The other side is gone.
        """

    def close(self) -> None:
        """Close the door; the other side notices."""
        with contextlib.suppress(OSError):
            self.door.shutdown(socket.SHUT_RDWR)
        self.door.close()

    def _wait(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Spin briefly on `ready`, then sleep until the door rings; False after `timeout`."""
        start = time.perf_counter()
        while True:
            if ready():
                return True
            if not 0 <= time.perf_counter() - start <= self.spin:
                break
        left = timeout
        while not ready():
            if left is not None and left <= 0:
                return False
            rung = self._rung(left)
            if rung == 0 and not ready():
                raise lost(self.peer)
            if (
                timeout is not None and left is not None
            ):  # a clock that is set back, as a host can, gives no more time
                left = 0.0 if rung < 0 else min(left, start + timeout - time.perf_counter())
        return True

    def _rung(self, timeout: float | None) -> int:
        """Wait for rings and take them; how many, 0 where the other side hung up, -1 if none came.

        The door never blocks: switching a socket between timeouts costs a system call each time,
        which is dear in an enclave.
        """
        with self._lost_if_broken():
            try:
                if not self._poll.poll(None if timeout is None else max(0.0, timeout * 1e3)):
                    return -1
                return len(self.door.recv(4096))
            except BlockingIOError:
                return -1

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full door rings already
            self.door.send(b"!")


def whole_answer(header: Header, body: bytes) -> bytes:
    """Check the private copy of an answer against its header."""
    return check_whole(header, body) if header.kind == ANSWER else body


def crc(header: Header, body: bytes | memoryview) -> Header:
    """The header with the body's checksum where the frame is an answer."""
    if header.kind != ANSWER:
        return header
    return replace(header, crc=zlib.crc32(body))


def receive_exactly(door: socket.socket, size: int) -> bytearray:
    """`size` bytes from a socket.

    Raises:
        FrameError: The other side closed in the middle (``truncated``).
        ConnectionError: It closed before the first byte.
    """
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        count = door.recv_into(view[got:])
        if count == 0:
            if got == 0:
                raise ConnectionError("closed")
            raise FrameError("truncated", f"the connection ended after {got} of {size} bytes")
        got += count
    return data
