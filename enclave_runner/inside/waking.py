"""End a thread's wait for its sockets from another thread."""

from __future__ import annotations

import contextlib
import socket
import threading


class Waking:
    """A socket that becomes readable when another thread calls `wake`.

    Attributes:
        sock: To be waited for, beside others.
    """

    def __init__(self) -> None:
        self.sock, self._far = socket.socketpair()
        self.sock.setblocking(False)
        self._far.setblocking(False)
        self._thread = 0

    def mine(self) -> None:
        """The calling thread is the one that waits: it need not wake itself."""
        self._thread = threading.get_ident()

    def wake(self) -> None:
        """End the wait."""
        if threading.get_ident() != self._thread:
            with contextlib.suppress(OSError):  # a full pipe wakes too
                self._far.send(b"!")

    def woken(self) -> None:
        """Take what was sent, so that the next wait waits."""
        with contextlib.suppress(BlockingIOError):
            while self.sock.recv(4096):
                pass
