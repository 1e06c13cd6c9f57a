"""Frames under AES-256-GCM, in bytes: a key and a counter for each direction.

A nonce is used once: it is counted before anything is encrypted under it, so that whatever fails
afterwards, a send included, the next frame has another.
"""

from __future__ import annotations

import struct
import time

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ...errors import FrameError

_LENGTH = struct.Struct("<IQ")
_TAG = 16


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "little")


class Sealer:
    """Makes the frames of one direction.

    Args:
        key: 32 bytes, for this direction of this session alone.
        most: Bytes of the largest message that the other side takes.
    """

    def __init__(self, key: bytes, most: int) -> None:
        self._cipher, self._most = AESGCM(key), most
        self._next = 0
        self._over = False

    def seal(self, message: bytes) -> bytes:
        """A frame.

        Raises:
            FrameError: Larger than the other side takes.
            ConnectionError: The direction was ended.
        """
        if self._over:
            raise ConnectionError("the session is over")
        if len(message) > self._most:
            raise FrameError(
                "oversized", f"a message has {len(message)} bytes; at most {self._most} are taken"
            )
        number = self._next
        self._next += 1
        body = self._cipher.encrypt(_nonce(number), message, None)
        return _LENGTH.pack(len(body), number) + body

    def end(self) -> None:
        """Encrypt nothing any more."""
        self._over = True


class Opener:
    """Opens the frames of one direction as they arrive.

    Attributes:
        most: Bytes of the largest message that is taken.
        decrypt_s: Seconds that the last message took to decrypt.
    """

    def __init__(self, key: bytes, most: int) -> None:
        self._cipher, self.most = AESGCM(key), most
        self._received = 0
        self.decrypt_s = 0.0

    def take(self, came: bytearray) -> bytes | None:
        """Take the first message out of `came`; None while it is not whole.

        Raises:
            FrameError: Oversized, truncated, replayed or forged.
        """
        if len(came) < _LENGTH.size:
            return None
        length, number = _LENGTH.unpack_from(came)
        if length > self.most + _TAG:
            raise FrameError("oversized", f"a frame announces {length} bytes")
        if length < _TAG:
            raise FrameError("truncated", f"a frame announces {length} bytes, less than its tag")
        if number != self._received:
            code = "replayed" if number < self._received else "unexpected"
            raise FrameError(code, f"a frame has number {number}, not {self._received}")
        end = _LENGTH.size + length
        if len(came) < end:
            return None
        begun = time.perf_counter()
        try:
            with memoryview(came) as view, view[_LENGTH.size : end] as body:
                message = self._cipher.decrypt(_nonce(number), body, None)
        except InvalidTag:
            raise FrameError("forged", "a frame does not decrypt under the session's key") from None
        self._received += 1
        self.decrypt_s = max(time.perf_counter() - begun, 0.0)
        del came[:end]
        return message


def announced(came: bytes | bytearray) -> int:
    """Bytes of the frame that `came` begins with, as it announces them; 0 if it does not yet."""
    return _LENGTH.unpack_from(came)[0] if len(came) >= _LENGTH.size else 0
