"""Computing time that is charged for a picture, so that nobody pays for what it did not cause.

A pass through the network costs every picture the same, so each is charged the usual pass, however
long its own took. What decoding took is charged as measured, by the processor's time of the
computing thread, but never more than such a picture can cost: inside Gramine there is no processor
time, every clock is the machine's, and a pause of the whole worker would look like work.

What a picture can cost goes by its pixels, bytes and pieces, in units of a small picture's time on
this machine, measured at the start. The factors are twice what the dearest kinds of pictures took;
a test measures them.
"""

from __future__ import annotations

import io
import struct
import time
from collections import deque
from collections.abc import Callable
from statistics import median_low

from PIL import Image

from ...errors import PictureError
from ...preprocessing import Preprocessing
from ..program.parts import Limits
from ..wire.accepted import FORMATS
from .decoding import decoded
from .scans import Effort, effort_of

_SIDE, _TRIES, _KEPT = 128, 15, 31
# Units for each pixel, pixel and scan, coded byte, piece and note; and small pictures for any.
_PIXEL, _SCAN, _BYTE, _PIECE, _NOTE, _ANY = 1.1e-4, 1e-5, 2e-4, 2e-2, 12.0, 4.0
_LEAST = Preprocessing(32, 36)


def small_picture() -> bytes:
    """An uncompressed picture that differs from row to row, made without an encoder."""
    pixels = bytes(range(256)) * (3 * _SIDE * _SIDE // 256)
    head = struct.pack("<2sIHHI", b"BM", 54 + len(pixels), 0, 0, 54)
    return head + struct.pack("<IiiHHIIiiII", 40, _SIDE, _SIDE, 1, 24, *[0] * 6) + pixels


class Prices:
    """What to charge.

    Args:
        preprocessing, limits: The network's.
        clock: Seconds of computing.

    Attributes:
        clock: As given.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        limits: Limits,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.clock, self._limits = clock, limits
        self._passes: deque[float] = deque(maxlen=_KEPT)
        self._small, self._unit = self._of_small(preprocessing), self._of_small(_LEAST)

    def _of_small(self, preprocessing: Preprocessing) -> float:
        """Seconds that a small picture takes."""
        picture, took = small_picture(), []
        for _ in range(_TRIES):  # of which a pause or a clock that was set spoils few
            begun = self.clock()
            decoded(picture, preprocessing, Limits())
            took.append(max(self.clock() - begun, 0.0))
        return sorted(took)[_TRIES // 3]

    def of_pass(self, seconds: float, tried: float) -> float:
        """The charge for a share of a pass that took `seconds` here, and `tried` at the start."""
        self._passes.append(max(seconds, 0.0))
        return median_low([tried, *self._passes])

    def of_picture(self, image: bytes, seconds: float) -> float:
        """The charge for preparing `image`, which took `seconds`, and for looking at it here."""
        if seconds <= _ANY * self._small:
            return max(seconds, 0.0)
        begun = self.clock()
        most = self.most(image)
        return min(seconds + max(self.clock() - begun, 0.0), most)

    def most(self, image: bytes) -> float:
        """Seconds that preparing `image` can cost."""
        try:
            effort = effort_of(image)
        except PictureError:  # nothing of it is decoded
            effort, pixels = Effort(coded=len(image)), 0
        else:
            pixels = _announced(image)
        if pixels > self._limits.image_pixels:
            pixels = 0
        units = (_PIXEL + _SCAN * effort.scans) * pixels + _BYTE * effort.coded
        units += _PIECE * effort.pieces + _NOTE * effort.notes
        return _ANY * self._small + units * self._unit


def _announced(image: bytes) -> int:
    """Pixels that a picture says it has; 0 where its decoder finds none."""
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            return opened.width * opened.height
    except Exception:  # decoders raise whatever they like on damaged files
        return 0
