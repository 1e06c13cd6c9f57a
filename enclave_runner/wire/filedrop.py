"""Hand-off through files, as published: save the feature map, load it outside.

Kept for comparison; shared memory does the same without the file system. The orchestrator makes the
files, with room for the largest frame, so that a disk that is full says so at the start.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import ServiceError
from .frames import HEADER_BYTES, Header, unpack
from .layouts import Layout, room, views
from .transport import End, Exchange, Side, crc, lost, whole_answer


def drop_files(exchange: Exchange) -> dict[str, int]:
    """The files of a hand-off: name and bytes of each, for the largest frame."""

    def size(layouts: Sequence[Layout]) -> int:
        return HEADER_BYTES + room(layouts, exchange.batch)

    return {
        _name(head, slot): size(exchange.boundary if head else exchange.answer)
        for head in (True, False)
        for slot in range(exchange.slots)
    }


def _name(by_head: bool, slot: int) -> str:
    return f"{'boundary' if by_head else 'answer'}-{slot}"


class FileDrop(End):
    """One file a frame in `folder`; the door only rings."""

    def __init__(self, door: socket.socket, exchange: Exchange, side: Side, folder: str) -> None:
        super().__init__(door, exchange, side)
        self._folder = Path(folder)
        self._out = bytearray(HEADER_BYTES + room(self.outgoing, exchange.batch))
        self._rings = 0

    def _path(self, by_head: bool, number: int) -> str:
        return str(self._folder / _name(by_head, (number - 1) % self.exchange.slots))

    def _put(self, header: Header, tensors: Sequence[np.ndarray]) -> None:
        if header.length:
            for there, tensor in zip(
                views(self._out, HEADER_BYTES, self.outgoing, header.batch), tensors, strict=True
            ):
                np.copyto(there, tensor)
        whole = memoryview(self._out)[: HEADER_BYTES + header.length]
        whole[:HEADER_BYTES] = crc(header, whole[HEADER_BYTES:]).pack()
        try:
            self._write(self._path(self.head, header.number), whole)
        except OSError as error:  # the disk's fault, and no sign of the other side's death
            self.sent -= 1  # nothing was announced
            raise ServiceError(
                "no-room",
                f"the frame cannot be written to {self._folder.parent} ({error.strerror}); free "
                "some there, or use --transport shm",
            ) from None
        self._ring()

    def _write(self, path: str, whole: memoryview) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            written = 0
            while written < len(whole):
                written += os.write(descriptor, whole[written:])
        finally:
            os.close(descriptor)

    def receive(self, timeout: float | None = None) -> tuple[Header, list[np.ndarray]] | None:
        """See the base class; tensors are private copies on both sides."""
        number = self.expected.number + 1
        while self._rings < number:
            came = self._rung(timeout)
            if came == 0:
                raise lost(self.peer)
            if came < 0:
                return None
            self._rings += came
        with self._lost_if_broken(), open(self._path(not self.head, number), "rb") as file:
            header = self.expected.check(unpack(file.read(HEADER_BYTES)))
            body = file.read(header.length)
        if not header.length:
            return header, []
        if self.head or len(body) != header.length:
            whole_answer(header, body)
        return header, views(bytearray(body), 0, self.incoming, header.batch)
