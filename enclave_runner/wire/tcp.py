"""Hand-off through the loopback connection itself: header, then body."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence

import numpy as np

from ...errors import FrameError
from .frames import HEADER_BYTES, Header, unpack
from .layouts import room, views
from .transport import End, Exchange, Side, crc, lost, whole_answer

_WITHIN_S = 30.0  # for the rest of a frame


class Stream(End):
    """Length-prefixed frames on the door."""

    def __init__(self, door: socket.socket, exchange: Exchange, side: Side) -> None:
        super().__init__(door, exchange, side)
        self._out = bytearray(room(self.outgoing, exchange.batch))
        self._room = select.poll()
        self._room.register(door, select.POLLOUT)

    def _put(self, header: Header, tensors: Sequence[np.ndarray]) -> None:
        if header.length:
            for there, tensor in zip(
                views(self._out, 0, self.outgoing, header.batch), tensors, strict=True
            ):
                np.copyto(there, tensor)
        body = memoryview(self._out)[: header.length]
        self._write(crc(header, body).pack())
        self._write(body)

    def _write(self, data: bytes | memoryview) -> None:
        """All of `data`, however long the other side takes.

        A time limit of the socket would be the receiving thread's too, and end a frame in its
        middle.
        """
        view = memoryview(data)
        while len(view):
            try:
                view = view[self.door.send(view) :]
            except BlockingIOError:
                self._room.poll()

    def receive(self, timeout: float | None = None) -> tuple[Header, list[np.ndarray]] | None:
        """See the base class; tensors are private copies on both sides."""
        if not self._poll.poll(None if timeout is None else max(0.0, timeout * 1e3)):
            return None
        header = self.expected.check(unpack(bytes(self._read(HEADER_BYTES))))
        if not header.length:
            return header, []
        body = self._read(header.length)
        if self.head:
            whole_answer(header, bytes(body))
        return header, views(body, 0, self.incoming, header.batch)

    def _read(self, size: int) -> bytearray:
        """`size` bytes of a frame that has begun.

        Raises:
            FrameError: The other side closed in the middle (``truncated``).
            ServiceError: It is gone, or stopped in the middle.
        """
        data = bytearray(size)
        view, got = memoryview(data), 0
        while got < size:
            try:
                came = self.door.recv_into(view[got:])
            except BlockingIOError:
                if not self._poll.poll(_WITHIN_S * 1e3):
                    raise lost(self.peer) from None
                continue
            except OSError:
                raise lost(self.peer) from None
            if came == 0 and got == 0:
                raise lost(self.peer)
            if came == 0:
                raise FrameError("truncated", f"the connection ended after {got} of {size} bytes")
            got += came
        return data
