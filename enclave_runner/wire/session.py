"""The encrypted session between a client and the head worker.

X25519 (RFC 7748) with fresh keys on both sides, HKDF-SHA256 over the whole handshake, then
AES-256-GCM frames, one key for each direction, nonces from a counter. In an enclave the answer to
the handshake carries a quote whose report data is the hash of the handshake, so that the key that
the client agrees on belongs to the enclave that the quote names. Elsewhere nothing binds the key:
whoever sits between can pretend to be the head worker.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ...errors import FrameError, SessionError
from .transport import receive_exactly

_MAGIC = b"POC1"
_HELLO = len(_MAGIC) + 32 + 32
_MAX_HELLO = 1 << 16
_LENGTH = struct.Struct("<IQ")
_TAG = 16
HANDSHAKE_S = 30.0


class Channel:
    """Frames under AES-256-GCM over a connected socket. One sender and one receiver at a time."""

    def __init__(self, sock: socket.socket, sending: bytes, receiving: bytes, most: int) -> None:
        self._sock, self._most = sock, most
        self._out, self._in = AESGCM(sending), AESGCM(receiving)
        self._sent = self._received = 0
        self.decrypt_s = 0.0
        sock.settimeout(None)

    def send(self, message: bytes) -> None:
        """Encrypt and send.

        Raises:
            FrameError: Larger than the other side takes.
            OSError: The connection is broken.
        """
        if len(message) > self._most:
            raise FrameError(
                "oversized", f"a message has {len(message)} bytes; at most {self._most} are taken"
            )
        body = self._out.encrypt(_nonce(self._sent), message, None)
        self._sock.sendall(_LENGTH.pack(len(body), self._sent) + body)
        self._sent += 1

    def receive(self, timeout: float | None = None) -> bytes:
        """Wait for a message.

        Raises:
            FrameError: Oversized, truncated, replayed or forged; the session is over.
            ConnectionError: The other side closed between two messages.
            TimeoutError: Nothing came.
        """
        self._sock.settimeout(timeout)
        length, number = _LENGTH.unpack(receive_exactly(self._sock, _LENGTH.size))
        if length > self._most + _TAG:
            raise FrameError("oversized", f"a frame announces {length} bytes")
        if length < _TAG:
            raise FrameError("truncated", f"a frame announces {length} bytes, less than its tag")
        if number != self._received:
            code = "replayed" if number < self._received else "unexpected"
            raise FrameError(code, f"a frame has number {number}, not {self._received}")
        self._sock.settimeout(HANDSHAKE_S if timeout is None else timeout)
        try:
            body = receive_exactly(self._sock, length)
        except ConnectionError:
            raise FrameError("truncated", "the connection ended within a frame") from None
        begun = time.perf_counter()
        try:
            message = self._in.decrypt(_nonce(number), body, None)
        except InvalidTag:
            raise FrameError("forged", "a frame does not decrypt under the session's key") from None
        self._received += 1
        self.decrypt_s = time.perf_counter() - begun
        return message


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "little")


@dataclass(frozen=True)
class Hello:
    """What the head worker said of itself: its backend, and a quote or nothing."""

    backend: str
    quote: bytes
    report_data: bytes


def _keys(secret: bytes, transcript: bytes) -> tuple[bytes, bytes]:
    material = HKDF(SHA256(), 64, hashlib.sha256(transcript).digest(), b"partopt session 1").derive(
        secret
    )
    return material[:32], material[32:]


def _report_data(client_hello: bytes, public: bytes, nonce: bytes) -> bytes:
    """64 bytes for the quote: SHA-256 of the handshake so far, then zeros."""
    digest = hashlib.sha256(b"partopt quote 1" + client_hello + public + nonce).digest()
    return digest.ljust(64, b"\0")


def _exchange(private: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise SessionError("the handshake has an unusable public key; connect again") from None


def accept(
    sock: socket.socket, backend: str, quote: Callable[[bytes], bytes], most: int
) -> Channel:
    """The head worker's side of the handshake.

    Args:
        sock: A fresh connection.
        backend: What to call ourselves.
        quote: Gives the quote for 64 bytes of report data, or nothing outside SGX.
        most: Largest message in bytes.

    Raises:
        FrameError, SessionError, OSError: The other side is no client.
    """
    sock.settimeout(HANDSHAKE_S)
    hello = bytes(receive_exactly(sock, _HELLO))
    if hello[:4] != _MAGIC:
        raise FrameError("malformed", "the connection does not begin with a handshake")
    private, nonce = X25519PrivateKey.generate(), secrets.token_bytes(32)
    public = private.public_key().public_bytes_raw()
    proof = quote(_report_data(hello, public, nonce))
    answer = json.dumps(
        {"public": public.hex(), "nonce": nonce.hex(), "backend": backend, "quote": proof.hex()}
    ).encode()
    sock.sendall(struct.pack("<I", len(answer)) + answer)
    to_head, to_client = _keys(_exchange(private, hello[4:36]), hello + answer)
    return Channel(sock, to_client, to_head, most)


def connect(
    sock: socket.socket, verify: Callable[[Hello], None], most: int
) -> tuple[Channel, Hello]:
    """The client's side of the handshake; `verify` raises where the answer does not convince.

    Raises:
        SessionError: The other side is no head worker, or `verify` refused it.
    """
    sock.settimeout(HANDSHAKE_S)
    private = X25519PrivateKey.generate()
    hello = _MAGIC + private.public_key().public_bytes_raw() + secrets.token_bytes(32)
    try:
        sock.sendall(hello)
        (length,) = struct.unpack("<I", receive_exactly(sock, 4))
        if length > _MAX_HELLO:
            raise FrameError("oversized", "its answer is too long")
        answer = bytes(receive_exactly(sock, length))
        data = json.loads(answer)
        public, nonce = bytes.fromhex(data["public"]), bytes.fromhex(data["nonce"])
        backend, quote = str(data["backend"])[:40], bytes.fromhex(data["quote"])
    except (OSError, FrameError, ValueError, KeyError, TypeError) as error:
        raise SessionError(
            f"no head worker answers there ({error}); check host and port"
        ) from error
    verify(Hello(backend, quote, _report_data(hello, public, nonce)))
    to_head, to_client = _keys(_exchange(private, public), hello + answer)
    return Channel(sock, to_head, to_client, most), Hello(backend, quote, b"")
