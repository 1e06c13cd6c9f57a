"""Frames between head worker and tail worker: one fixed header, then tensors of agreed shapes.

Both sides know every shape from the bundle, so that a header carries no shape, only how many images
there are. The reader copies a header once and checks the copy: the other side may change the
original while it is read.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from ...errors import FrameError

BOUNDARY, ANSWER, FAILURE = 1, 2, 3
_HEADER = struct.Struct("<4sHHQQQQII")
_MAGIC = b"POF2"
HEADER_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class Header:
    """Head of a frame.

    Attributes:
        kind: BOUNDARY (head to tail), ANSWER or FAILURE (tail to head).
        batch: Images in the frame.
        instance: The service that it belongs to.
        number: Position of the frame in its direction, from 1; tells replays.
        request: The run it belongs to.
        compute_ns: The tail's own time, nanoseconds; not to be trusted.
        length: Bytes of the body.
        crc: CRC-32 of an answer's body, 0 for boundary tensors: tells torn from whole, no more.
    """

    kind: int
    batch: int
    instance: int
    number: int
    request: int
    compute_ns: int
    length: int
    crc: int

    def pack(self) -> bytes:
        """HEADER_BYTES bytes."""
        body = _HEADER.pack(
            _MAGIC,
            self.kind,
            self.batch,
            self.instance,
            self.number,
            self.request,
            self.compute_ns,
            self.length,
            self.crc,
        )
        return body.ljust(HEADER_BYTES, b"\0")


def unpack(data: bytes) -> Header:
    """Read a header.

    Raises:
        FrameError: Too short, or no header.
    """
    if len(data) < HEADER_BYTES:
        raise FrameError("truncated", f"a frame's header has {len(data)} bytes, not {HEADER_BYTES}")
    magic, kind, batch, *words = _HEADER.unpack_from(data)
    instance, number, request, compute_ns, length, crc = words
    if magic != _MAGIC:
        raise FrameError("malformed", "a frame does not begin like one")
    return Header(
        kind=kind,
        batch=batch,
        instance=instance,
        number=number,
        request=request,
        compute_ns=compute_ns,
        length=length,
        crc=crc,
    )


@dataclass
class Expected:
    """What the reader of a direction accepts.

    Attributes:
        kinds: Allowed kinds.
        per_batch: Body bytes for each batch size, by batch.
        instance: The service whose frames these are.
        number: Of the last frame.
    """

    kinds: tuple[int, ...]
    per_batch: dict[int, int]
    instance: int
    number: int = 0

    def check(self, header: Header) -> Header:
        """Check a header and count it.

        Raises:
            FrameError: Of another service, of a wrong kind, replayed or skipped, or of a length
                that its batch has not.
        """
        if header.instance != self.instance:
            raise FrameError("forged", "a frame belongs to another service")
        if header.kind not in self.kinds:
            raise FrameError("unexpected", f"a frame is of kind {header.kind}, not {self.kinds}")
        if header.number != self.number + 1:
            what = "replayed" if header.number <= self.number else "unexpected"
            raise FrameError(what, f"a frame has number {header.number}, not {self.number + 1}")
        if header.batch not in self.per_batch:
            raise FrameError("oversized", f"a frame holds {header.batch} images")
        wanted = 0 if header.kind == FAILURE else self.per_batch[header.batch]
        if header.length != wanted:
            code = "oversized" if header.length > wanted else "truncated"
            raise FrameError(code, f"a frame announces {header.length} bytes, not {wanted}")
        self.number += 1
        return header


def check_whole(header: Header, body: bytes) -> bytes:
    """Return `body` if it is what its header says.

    Raises:
        FrameError: Truncated or torn.
    """
    if len(body) != header.length:
        raise FrameError("truncated", f"a frame has {len(body)} bytes, not {header.length}")
    if zlib.crc32(body) != header.crc:
        raise FrameError(
            "torn", "a frame's checksum does not fit its bytes: it was read half-written"
        )
    return body
