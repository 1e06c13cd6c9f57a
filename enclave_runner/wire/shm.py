"""Hand-off through shared memory: a ring of slots each way, tensors in place.

    page 0      counters: frames published head -> tail (word 8) and tail -> head (word 16)
    then        `slots` slots for boundary tensors, then `slots` slots for answers

A slot is a header and a body. Words are written with single aligned stores; x86 keeps the order of
stores, so a counter is never seen before what it announces.
"""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Sequence

import numpy as np

from .frames import HEADER_BYTES, Header, unpack
from .layouts import Layout, room, views
from .transport import End, Exchange, Side, crc, whole_answer

_PAGE = 4096
_WORD = {True: 8, False: 16}  # written by head, written by tail


def _stride(layouts: Sequence[Layout], batch: int) -> int:
    size = HEADER_BYTES + room(layouts, batch)
    return -(-size // _PAGE) * _PAGE


def area_bytes(exchange: Exchange) -> int:
    """Size of the shared area."""
    each = _stride(exchange.boundary, exchange.batch) + _stride(exchange.answer, exchange.batch)
    return _PAGE + exchange.slots * each


class SharedMemory(End):
    """One side of the ring; `area` is a path, or a descriptor that was inherited."""

    def __init__(
        self, door: socket.socket, exchange: Exchange, side: Side, area: str | int
    ) -> None:
        super().__init__(door, exchange, side)
        # Gramine opens shared memory with os.open alone.
        descriptor = os.open(area, os.O_RDWR) if isinstance(area, str) else area
        self._memory = mmap.mmap(descriptor, area_bytes(exchange))
        if isinstance(area, str):
            os.close(descriptor)
        self._bytes = memoryview(self._memory)
        self._words = self._bytes[:_PAGE].cast("Q")
        self._strides = {
            True: _stride(exchange.boundary, exchange.batch),
            False: _stride(exchange.answer, exchange.batch),
        }
        self._starts = {True: _PAGE, False: _PAGE + exchange.slots * self._strides[True]}
        self._views: dict[tuple[bool, int, int], list[np.ndarray]] = {}
        if side.head:
            self._words[_WORD[True]] = self._words[_WORD[False]] = 0

    def _slot(self, by_head: bool, number: int) -> int:
        slot = (number - 1) % self.exchange.slots
        return self._starts[by_head] + slot * self._strides[by_head]

    def _tensors(self, by_head: bool, start: int, batch: int) -> list[np.ndarray]:
        key = (by_head, start, batch)
        if key not in self._views:
            layouts = self.exchange.boundary if by_head else self.exchange.answer
            self._views[key] = views(self._memory, start + HEADER_BYTES, layouts, batch)
        return self._views[key]

    def _put(self, header: Header, tensors: Sequence[np.ndarray]) -> None:
        start = self._slot(self.head, header.number)
        if header.length:
            for there, tensor in zip(
                self._tensors(self.head, start, header.batch), tensors, strict=True
            ):
                np.copyto(there, tensor)
        body = self._bytes[start + HEADER_BYTES : start + HEADER_BYTES + header.length]
        self._bytes[start : start + HEADER_BYTES] = crc(header, body).pack()
        self._words[_WORD[self.head]] = header.number
        self._ring()

    def receive(self, timeout: float | None = None) -> tuple[Header, list[np.ndarray]] | None:
        """See the base class; the tail's tensors lie in the shared area."""
        word, wanted = _WORD[not self.head], self.expected.number + 1
        if not self._wait(lambda: self._words[word] >= wanted, timeout):
            return None
        start = self._slot(not self.head, wanted)
        header = self.expected.check(unpack(bytes(self._bytes[start : start + HEADER_BYTES])))
        if not header.length:
            return header, []
        if not self.head:
            return header, self._tensors(True, start, header.batch)
        at = start + HEADER_BYTES
        body = whole_answer(header, bytes(self._bytes[at : at + header.length]))
        return header, views(bytearray(body), 0, self.exchange.answer, header.batch)

    def close(self) -> None:
        """Close the door; the memory goes with the last tensor over it."""
        super().close()
        self._views.clear()
