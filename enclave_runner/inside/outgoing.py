"""What is owed to a client: sent as far as it takes it, kept within bounds, never waited for."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable

from ..wire.sealed import Sealer
from . import clock

_EACH = 256  # bytes that a message takes beyond its own


class Owed:
    """Bytes that each client has not taken yet, and how many those may be of all together."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._bytes: dict[Outgoing, int] = {}

    def add(self, out: Outgoing, count: int) -> Outgoing | None:
        """Count bytes (or with a negative number, forget them).

        Returns the one that is owed the most where all together are owed too much.
        """
        with self._lock:
            left = self._bytes.pop(out, 0) + count
            if left:
                self._bytes[out] = left
            if sum(self._bytes.values()) <= self._most:
                return None
            return max(self._bytes, key=lambda o: self._bytes[o])


class Outgoing:
    """Answers to one client. Any thread may put one, and none ever waits for the client.

    Args:
        sock: The client's; it does not block.
        owed: What all clients together may be owed.
        behind: Called when bytes are left over, or the connection broke; by any thread.

    Attributes:
        over: Whether nothing will be sent any more.
    """

    def __init__(self, sock: socket.socket, owed: Owed, behind: Callable[[], None]) -> None:
        self._sock, self._owed, self._behind = sock, owed, behind
        self._left: deque[memoryview] = deque()
        self._held = self._counted = 0
        self._lock = threading.Lock()
        self._since = 0.0
        self.over = False

    def put(self, message: bytes, sealer: Sealer | None) -> None:
        """Send a message under `sealer` (None: in the clear), or keep what is not taken of it.

        Where all clients together are owed too much, the one that is owed the most is given up.

        Raises:
            FrameError: Larger than a message may be.
            ConnectionError: `sealer` was ended.
        """
        with self._lock:
            if self.over:
                return
            data = sealer.seal(message) if sealer is not None else message
            if not self._left:
                self._since = clock.now()
            self._left.append(memoryview(data))
            self._held += len(data) + _EACH
            self._send()
            greediest = self._count()
            behind = bool(self._left) or self.over
        if greediest is not None:
            greediest.give_up()
        if behind:
            self._behind()

    def give_up(self) -> None:
        """Send nothing any more; what is left is forgotten by whoever ends the session."""
        self.over = True
        self._behind()

    def go_on(self) -> None:
        """Send more of what is left."""
        with self._lock:
            self._send()
            self._count()

    def stalled(self, now: float) -> float:
        """Seconds for which the client has taken nothing of what it is owed."""
        with self._lock:
            return now - self._since if self._left else 0.0

    @property
    def waiting(self) -> bool:
        """Whether something is left."""
        return bool(self._left)

    def end(self) -> None:
        """Forget what is left and send nothing any more."""
        with self._lock:
            self._forget()
            self._count()

    def _forget(self) -> None:
        self.over, self._held = True, 0
        self._left.clear()

    def _count(self) -> Outgoing | None:
        change, self._counted = self._held - self._counted, self._held
        return self._owed.add(self, change) if change else None

    def _send(self) -> None:
        while self._left and not self.over:
            try:
                count = self._sock.send(self._left[0], socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:  # what was sent of the frame is not known: nothing may follow
                self._forget()
                return
            self._since = clock.now()
            self._held -= count
            self._left[0] = self._left[0][count:]
            if not self._left[0]:
                self._left.popleft()
                self._held -= _EACH
