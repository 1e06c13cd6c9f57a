"""The encrypted session between a client and the head worker.

X25519 (RFC 7748) with fresh keys on both sides, HKDF-SHA256 over the whole handshake, then
AES-256-GCM frames (`sealed`), one key for each direction. In an enclave the answer to the handshake
carries a quote whose report data is the hash of the handshake, so that the key that the client
agrees on belongs to the enclave that the quote names. Elsewhere nothing binds the key: whoever sits
between can pretend to be the head worker.

The head worker's side needs no socket (`Accepting`): one thread of it serves all clients.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ...errors import FrameError, ServiceError, SessionError
from .accepted import BACKENDS, REFUSALS
from .sealed import Opener, Sealer

_MAGIC = b"POC1"
HELLO_BYTES = len(_MAGIC) + 32 + 32
_MAX_ANSWER = 1 << 16
_CHUNK = 1 << 16
# Seconds for a whole handshake, and for the other side to take or give the next bytes of a frame.
HANDSHAKE_S = STALLED_S = 30.0


class Channel:
    """Sealed frames over a connected socket. One sender and one receiver at a time.

    Each direction has a time limit of its own. A send that fails ends the channel: nothing is ever
    encrypted again, and the receiver sees the end too.

    Args:
        sock: Connected to the other side.
        sending, receiving: 32-byte keys.
        most: Bytes of the largest message that the other side takes.
        coming: Bytes of the largest that it sends; None: as `most`.
        binding: What both sides know of this handshake, for the client's proof.
    """

    def __init__(
        self,
        sock: socket.socket,
        sending: bytes,
        receiving: bytes,
        most: int,
        coming: int | None = None,
        binding: bytes = b"",
    ) -> None:
        self._sock, self.binding = sock, binding
        self._out, self._in = Sealer(sending, most), Opener(receiving, coming or most)
        self._came = bytearray()
        sock.setblocking(False)

    @property
    def decrypt_s(self) -> float:
        """Seconds that the last message took to decrypt."""
        return self._in.decrypt_s

    def send(self, message: bytes) -> None:
        """Encrypt and send.

        Raises:
            FrameError: Larger than the other side takes; nothing was sent.
            OSError: The connection is broken, or the other side takes nothing. The channel is over.
        """
        data = memoryview(self._out.seal(message))
        try:
            while data:
                try:
                    data = data[self._sock.send(data, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    _wait(self._sock, select.POLLOUT, STALLED_S)
        except BaseException:  # what was sent of the frame is not known
            self.end()
            raise

    def end(self) -> None:
        """Never encrypt again, and let both sides see the end."""
        self._out.end()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def receive(self, timeout: float | None = None) -> bytes:
        """Wait for a message.

        Raises:
            FrameError: Oversized, truncated, replayed or forged; the session is over.
            ConnectionError: The other side closed between two messages.
            TimeoutError: Nothing came, or nothing more of a frame that had begun.
        """
        while (message := self._in.take(self._came)) is None:
            more = _some(self._sock, _CHUNK, STALLED_S if self._came else timeout)
            if not more and self._came:
                raise FrameError("truncated", "the connection ended within a frame")
            if not more:
                raise ConnectionError("closed")
            self._came += more
        return message


def _wait(sock: socket.socket, event: int, seconds: float | None) -> None:
    poll = select.poll()
    try:
        poll.register(sock, event)
    except ValueError:  # closed by another thread
        raise ConnectionError("closed") from None
    if not poll.poll(None if seconds is None else max(0.0, seconds * 1e3)):
        raise TimeoutError("the other side is silent")


def _some(sock: socket.socket, most: int, seconds: float | None) -> bytes:
    """What is there to be received, after waiting for it; empty at the end."""
    while True:
        try:
            return sock.recv(most, socket.MSG_DONTWAIT)
        except BlockingIOError:
            _wait(sock, select.POLLIN, seconds)


def _exactly(sock: socket.socket, size: int, until: float) -> bytes:
    """`size` bytes before the moment `until`, in memory that grows with what arrives."""
    data = bytearray()
    while len(data) < size:
        more = _some(sock, min(_CHUNK, size - len(data)), until - time.monotonic())
        if not more and not data:
            raise ConnectionError("closed")
        if not more:
            raise FrameError("truncated", f"the connection ended after {len(data)} of {size} bytes")
        data += more
    return bytes(data)


@dataclass(frozen=True)
class Hello:
    """What the head worker said of itself: its backend, and a quote or nothing.

    ``backend`` is one of `BACKENDS` or ``unknown``, and a claim: only a quote proves it.
    """

    backend: str
    quote: bytes
    report_data: bytes


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """What both sides know after a handshake: a key each way, and 32 bytes that name it."""

    to_head: bytes
    to_client: bytes
    binding: bytes


def _secrets(shared: bytes, transcript: bytes) -> Secrets:
    material = HKDF(SHA256(), 64, hashlib.sha256(transcript).digest(), b"partopt session 1").derive(
        shared
    )
    return Secrets(
        to_head=material[:32],
        to_client=material[32:],
        binding=hashlib.sha256(b"partopt binding 1" + transcript).digest(),
    )


def _report_data(client_hello: bytes, public: bytes, nonce: bytes) -> bytes:
    """64 bytes for the quote: SHA-256 of the handshake so far, then zeros."""
    digest = hashlib.sha256(b"partopt quote 1" + client_hello + public + nonce).digest()
    return digest.ljust(64, b"\0")


def _exchange(private: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise SessionError("the handshake has an unusable public key; connect again") from None


class Accepting:
    """The head worker's side of one handshake, in bytes.

    Args:
        hello: The client's `HELLO_BYTES` bytes.
        backend: What to call ourselves.

    Attributes:
        report_data: 64 bytes for the quote.

    Raises:
        FrameError, SessionError: The other side is no client.
    """

    def __init__(self, hello: bytes, backend: str) -> None:
        if hello[:4] != _MAGIC:
            raise FrameError("malformed", "the connection does not begin with a handshake")
        private, self._nonce = X25519PrivateKey.generate(), secrets.token_bytes(32)
        self._hello, self._backend = hello, backend
        self._public = private.public_key().public_bytes_raw()
        self._shared = _exchange(private, hello[4:36])
        self.report_data = _report_data(hello, self._public, self._nonce)

    def answer(self, proof: bytes) -> tuple[bytes, Secrets]:
        """The bytes to send back, with a quote or nothing, and what was agreed on."""
        answer = json.dumps(
            {
                "public": self._public.hex(),
                "nonce": self._nonce.hex(),
                "backend": self._backend,
                "quote": proof.hex(),
            }
        ).encode()
        framed = struct.pack("<I", len(answer)) + answer
        return framed, _secrets(self._shared, self._hello + answer)


def refusal(code: str) -> bytes:
    """The answer to a handshake that is not gone on with."""
    answer = json.dumps({"error": code}).encode()
    return struct.pack("<I", len(answer)) + answer


def accept(
    sock: socket.socket, backend: str, quote: Callable[[bytes], bytes], most: int
) -> Channel:
    """The head worker's side of the handshake over a socket of its own.

    Args:
        sock: A fresh connection.
        backend: What to call ourselves.
        quote: Gives the quote for 64 bytes of report data, or nothing outside SGX.
        most: Largest message in bytes.

    Raises:
        FrameError, SessionError, OSError: The other side is no client.
    """
    until = time.monotonic() + HANDSHAKE_S
    accepting = Accepting(_exactly(sock, HELLO_BYTES, until), backend)
    answer, agreed = accepting.answer(quote(accepting.report_data))
    sock.sendall(answer)
    return Channel(sock, agreed.to_client, agreed.to_head, most, binding=agreed.binding)


def connect(
    sock: socket.socket, verify: Callable[[Hello], None], most: int, coming: int | None = None
) -> tuple[Channel, Hello]:
    """The client's side of the handshake; `verify` raises where the answer does not convince.

    Raises:
        SessionError: The other side is no head worker, or `verify` refused it.
        ServiceError: It is one and takes no client now; ``code`` says why.
    """
    until = time.monotonic() + HANDSHAKE_S
    private = X25519PrivateKey.generate()
    hello = _MAGIC + private.public_key().public_bytes_raw() + secrets.token_bytes(32)
    try:
        sock.sendall(hello)
        (length,) = struct.unpack("<I", _exactly(sock, 4, until))
        if length > _MAX_ANSWER:
            raise FrameError("oversized", "its answer is too long")
        answer = _exactly(sock, length, until)
        data = json.loads(answer)
        refused = data.get("error")
        if refused in REFUSALS:
            raise ServiceError(refused, REFUSALS[refused])
        public, nonce = bytes.fromhex(data["public"]), bytes.fromhex(data["nonce"])
        quote = bytes.fromhex(data["quote"])
        backend = data["backend"] if data["backend"] in BACKENDS else "unknown"
    except (OSError, FrameError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SessionError(
            f"no head worker answers there ({error}); check host and port"
        ) from error
    verify(Hello(backend, quote, _report_data(hello, public, nonce)))
    agreed = _secrets(_exchange(private, public), hello + answer)
    channel = Channel(sock, agreed.to_head, agreed.to_client, most, coming, binding=agreed.binding)
    return channel, Hello(backend, quote, b"")
