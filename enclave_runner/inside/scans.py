"""How often a JPEG makes its decoder go over all of its pixels.

A progressive JPEG may say so in a few bytes a scan: some 10 kB can keep a decoder busy for minutes.
"""

from __future__ import annotations

import re

from ...errors import PictureError
from ..wire.accepted import MAX_SCANS, MAX_SEGMENTS

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SCAN, _END, _ALONE = 0xDA, 0xD9, (0xD8, 0x01)


def check_scans(data: bytes) -> None:
    """Refuse a JPEG of too many scans; whatever else it is, its decoder says.

    Raises:
        PictureError: ``too-large``.
    """
    if not data.startswith(b"\xff\xd8"):
        return
    at, scans, segments = 2, 0, 0
    while (found := _MARKER.search(data, at)) is not None:
        kind, at = data[found.end() - 1], found.end()
        if kind == _END:
            return
        segments += 1
        scans += kind == _SCAN
        if scans > MAX_SCANS or segments > MAX_SEGMENTS:
            raise PictureError("too-large", f"goes over its pixels more than {MAX_SCANS} times")
        if kind not in _ALONE:
            at += int.from_bytes(data[at : at + 2], "big")
