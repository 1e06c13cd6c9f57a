"""Hand-off through files, as published: save the feature map, load it outside.

Kept for comparison; shared memory does the same without the file system.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import torch

from .frames import HEADER_BYTES, Header, unpack
from .layouts import room, views
from .transport import End, Exchange, crc, lost, whole_answer


class FileDrop(End):
    """One file a frame in `folder`; the door only rings."""

    def __init__(
        self, door: socket.socket, exchange: Exchange, head: bool, spin: float, folder: str
    ) -> None:
        super().__init__(door, exchange, head, spin)
        self._folder = Path(folder)
        self._out = bytearray(HEADER_BYTES + room(self.outgoing, exchange.batch))
        self._rings = 0

    def _path(self, by_head: bool, number: int) -> str:
        slot = (number - 1) % self.exchange.slots
        return str(self._folder / f"{'boundary' if by_head else 'answer'}-{slot}")

    def _put(self, header: Header, tensors: Sequence[torch.Tensor]) -> None:
        if header.length:
            for there, tensor in zip(
                views(self._out, HEADER_BYTES, self.outgoing, header.batch), tensors, strict=True
            ):
                there.copy_(tensor)
        whole = memoryview(self._out)[: HEADER_BYTES + header.length]
        whole[:HEADER_BYTES] = crc(header, whole[HEADER_BYTES:]).pack()
        path = self._path(self.head, header.number)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            written = 0
            while written < len(whole):
                written += os.write(descriptor, whole[written:])
        finally:
            os.close(descriptor)
        self._ring()

    def receive(self, timeout: float | None = None) -> tuple[Header, list[torch.Tensor]] | None:
        """See the base class; tensors are private copies on both sides."""
        number = self.expected.number + 1
        while self._rings < number:
            came = self._rung(timeout)
            if came == 0:
                raise lost(self.peer)
            if came < 0:
                return None
            self._rings += came
        most = HEADER_BYTES + room(self.incoming, self.exchange.batch)
        with open(self._path(not self.head, number), "rb") as file:
            data = file.read(most + 1)
        header = self.expected.check(unpack(data[:HEADER_BYTES]))
        if not header.length:
            return header, []
        body = data[HEADER_BYTES : HEADER_BYTES + header.length]
        if self.head or len(body) != header.length:
            whole_answer(header, body)
        return header, views(bytearray(body), 0, self.incoming, header.batch)
