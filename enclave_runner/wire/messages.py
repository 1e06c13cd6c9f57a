"""Messages: a JSON head and raw bytes, inside a session; JSON lines on the control connection."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from typing import Any

from ...errors import FrameError
from .addresses import family, literal

MAX_HEAD = 1 << 16
_HEAD = struct.Struct("<I")
PORT_VARIABLE, TOKEN_VARIABLE = "PARTOPT_CONTROL", "PARTOPT_TOKEN"
TOKEN_BYTES = 16


def encode(head: dict[str, Any], body: bytes = b"") -> bytes:
    """One message."""
    text = json.dumps(head, separators=(",", ":")).encode()
    return _HEAD.pack(len(text)) + text + body


def decode(message: bytes) -> tuple[dict[str, Any], bytes]:
    """Head and body.

    Raises:
        FrameError: Not a message.
    """
    if len(message) < _HEAD.size:
        raise FrameError("truncated", "a message has no head")
    (size,) = _HEAD.unpack_from(message)
    if size > MAX_HEAD or size > len(message) - _HEAD.size:
        raise FrameError("malformed", "a message's head is longer than allowed")
    return _object(message[_HEAD.size : _HEAD.size + size]), message[_HEAD.size + size :]


def _object(text: bytes) -> dict[str, Any]:
    try:
        head = json.loads(text)
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict):
        raise FrameError("malformed", "a message's head is no JSON object")
    return head


class Control:
    """The connection between the orchestrator and a worker that it started."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._lock, self._rest = sock, threading.Lock(), b""
        sock.settimeout(None)

    @classmethod
    def dial(cls) -> Control:
        """The worker's side: connect as the environment says, and say the token."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.connect(("127.0.0.1", int(os.environ[PORT_VARIABLE])))
        sock.sendall(bytes.fromhex(os.environ[TOKEN_VARIABLE]))
        return cls(sock)

    def send(self, **event: Any) -> None:
        """Send one line; silently nothing if the other side is gone."""
        with self._lock, contextlib.suppress(OSError):
            self._sock.sendall(json.dumps(event).encode() + b"\n")

    def read(self) -> dict[str, Any] | None:
        """The next line, or None at the end.

        Raises:
            FrameError: Too long, or no JSON object.
        """
        while b"\n" not in self._rest:
            if len(self._rest) > MAX_HEAD:
                raise FrameError("oversized", "a line on the control connection is too long")
            try:
                more = self._sock.recv(1 << 16)
            except OSError:
                return None
            if not more:
                return None
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return _object(line)

    def close(self) -> None:
        """End the connection; a worker ends with it."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


def listen(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A listening TCP socket; port 0 takes any free one.

    Raises:
        UsageError: `host` is neither ``localhost`` nor an address in numbers.
        OSError: It is not this machine's, or the port is taken.
    """
    address = literal(host)
    sock = socket.socket(family(address), socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(128)
    except BaseException:
        sock.close()
        raise
    return sock
