"""A connected client, from its first byte to its last."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field
from typing import Any

from ...errors import FrameError
from ..wire.accepted import REFUSALS
from ..wire.messages import encode
from ..wire.sealed import Opener, Sealer
from ..wire.session import Accepting, Secrets, refusal
from .outgoing import Outgoing


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of the largest messages: from a client, to it, and from one that proved nothing."""

    coming: int
    going: int
    unproven: int


@dataclass(eq=False)
class Session:
    """What is known of a client. The listening thread reads it; any thread answers it.

    Attributes:
        sock: Its connection.
        owner: Its address; once it proved to have a key, that.
        out: Answers to it.
        since: When its last message was whole.
        begun: When the frame began that is not whole; 0 between frames.
        came: Bytes that are not handled yet.
        accepting: Its handshake while a quote is made for it.
        member: Whether it has a place, or is only at the door.
        answered, under_way: Images of it that were answered, and that are not yet.
        gone: Why its session ended; empty while it goes on.
    """

    sock: socket.socket
    owner: str
    out: Outgoing
    since: float
    begun: float
    came: bytearray = field(default_factory=bytearray)
    accepting: Accepting | None = None
    opener: Opener | None = None
    binding: bytes = b""
    member: bool = False
    answered: int = 0
    under_way: int = 0
    wrong_keys: int = 0
    gone: str = ""
    size: int = 0
    _sealer: Sealer | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def session(self) -> Session:
        """Itself: at the door it waits in a queue for its quote."""
        return self

    def agree(self, answer: bytes, agreed: Secrets, sizes: Sizes) -> None:
        """End the handshake with `answer`; what follows is sealed."""
        self._sealer = Sealer(agreed.to_client, sizes.going)
        self.opener = Opener(agreed.to_head, sizes.unproven)
        self.binding, self.accepting = agreed.binding, None
        self.out.put(answer, None)

    def answer(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Send a message; a client that is gone is no error.

        An answer that is larger than any may be is told as an error, never dropped in silence.
        """
        if self.gone or self._sealer is None:
            return
        try:
            self.out.put(encode(head, body), self._sealer)
        except FrameError as error:
            text = encode({"id": head.get("id"), "error": error.code, "text": str(error)})
            self.out.put(text, self._sealer)
        except ConnectionError:
            pass

    def refuse(self, request: int, code: str, text: str) -> None:
        """Answer with an error."""
        self.answer({"id": request, "error": code, "text": text})

    def turn_away(self, code: str) -> None:
        """Say why the session ends, as the last thing."""
        if self._sealer is not None:
            self.refuse(0, code, REFUSALS.get(code, ""))
        else:
            self.out.put(refusal(code), None)

    def count(self, under_way: int, answered: int = 0) -> None:
        """Count requests that began or ended."""
        with self._lock:
            self.under_way += under_way
            self.answered += answered

    def end(self, why: str) -> None:
        """Nothing is sealed or sent any more; the connection is closed."""
        self.gone = why or "gone"
        if self._sealer is not None:
            self._sealer.end()
        self.out.end()
        self.sock.close()
        self.came = bytearray()  # up to a whole message, and who ended may be known for a while
