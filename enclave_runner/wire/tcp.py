"""Hand-off through the loopback connection itself: header, then body."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import torch

from .frames import HEADER_BYTES, Header, unpack
from .layouts import room, views
from .transport import End, Exchange, crc, lost, receive_exactly, whole_answer


class Stream(End):
    """Length-prefixed frames on the door."""

    def __init__(self, door: socket.socket, exchange: Exchange, head: bool, spin: float) -> None:
        super().__init__(door, exchange, head, spin)
        self._out = bytearray(room(self.outgoing, exchange.batch))

    def _put(self, header: Header, tensors: Sequence[torch.Tensor]) -> None:
        if header.length:
            for there, tensor in zip(
                views(self._out, 0, self.outgoing, header.batch), tensors, strict=True
            ):
                there.copy_(tensor)
        body = memoryview(self._out)[: header.length]
        self.door.settimeout(None)
        self.door.sendall(crc(header, body).pack())
        self.door.sendall(body)

    def receive(self, timeout: float | None = None) -> tuple[Header, list[torch.Tensor]] | None:
        """See the base class; tensors are private copies on both sides."""
        try:
            self.door.settimeout(timeout)
            raw = receive_exactly(self.door, HEADER_BYTES)
            header = self.expected.check(unpack(bytes(raw)))
            self.door.settimeout(30.0)
            body = receive_exactly(self.door, header.length) if header.length else bytearray()
        except TimeoutError:
            return None
        except ConnectionError:
            raise lost(self.peer) from None
        if not header.length:
            return header, []
        if self.head:
            whole_answer(header, bytes(body))
        return header, views(body, 0, self.incoming, header.batch)
