"""What a picture's bytes make its decoder do beside going over its pixels once.

A progressive JPEG may have its decoder go over all pixels again in a few bytes a scan, and a PNG
may have it inflate a megabyte of notes or colour profile in a thousand bytes: a few kilobytes can
keep a decoder busy for minutes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import PictureError
from ..wire.accepted import MAX_CHUNKS, MAX_NOTES, MAX_SCANS, MAX_SEGMENTS

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SCAN, _END, _ALONE = 0xDA, 0xD9, (0xD8, 0x01)
_PNG, _INFLATED = b"\x89PNG\r\n\x1a\n", (b"iCCP", b"zTXt", b"iTXt")


@dataclass(frozen=True)
class Effort:
    """What a decoder does.

    Attributes:
        coded: Bytes that it decodes, where pixels are not stored as they are.
        scans: How often it goes over the pixels.
        pieces, notes: Segments or chunks, and those that it inflates.
    """

    coded: int
    scans: int = 1
    pieces: int = 0
    notes: int = 0


def effort_of(data: bytes) -> Effort:
    """What a JPEG or PNG asks of its decoder; whatever else it is, its decoder says.

    Raises:
        PictureError: ``too-large``.
    """
    if data.startswith(b"\xff\xd8"):
        return _of_jpeg(data)
    if data.startswith(_PNG):
        return _of_png(data)
    return Effort(0 if data.startswith(b"BM") else len(data))


def _of_jpeg(data: bytes) -> Effort:
    at, scans, segments = 2, 0, 0
    while (found := _MARKER.search(data, at)) is not None:
        kind, at = data[found.end() - 1], found.end()
        if kind == _END:
            break
        segments += 1
        scans += kind == _SCAN
        if scans > MAX_SCANS or segments > MAX_SEGMENTS:
            raise PictureError("too-large", f"goes over its pixels more than {MAX_SCANS} times")
        if kind not in _ALONE:
            at += int.from_bytes(data[at : at + 2], "big")
    return Effort(len(data), max(scans, 1), segments)


def _of_png(data: bytes) -> Effort:
    at, chunks, notes = len(_PNG), 0, 0
    while at + 8 <= len(data):
        chunks += 1
        notes += data[at + 4 : at + 8] in _INFLATED
        if notes > MAX_NOTES or chunks > MAX_CHUNKS:
            raise PictureError("too-large", f"has more than {MAX_NOTES} notes or too many chunks")
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return Effort(len(data), 1, chunks, notes)
