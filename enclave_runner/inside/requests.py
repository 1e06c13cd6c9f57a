"""One image of one client on its way through the head worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .clients import Session
from .clock import now


@dataclass(eq=False)
class Request:
    """An image that waits for its answer. Times in seconds.

    Answered or refused exactly once; a client that left is answered no more.
    """

    session: Session
    id: int
    image: bytes
    times: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=now)

    def __post_init__(self) -> None:
        self.session.count(1)

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return len(self.image)

    def answer(self, body: bytes) -> None:
        """Send the answer's tensors, one behind the other."""
        self.session.answer({"id": self.id, "times": self.times}, body)
        self.session.since = now()
        self.session.count(-1, 1)

    def refuse(self, code: str, text: str) -> None:
        """Send an error instead."""
        self.image = b""
        self.session.refuse(self.id, code, text)
        self.session.count(-1)


@dataclass(eq=False)
class Run:
    """Requests that go through head and tail together."""

    requests: Sequence[Request]
    handed_over: float = 0.0

    def refuse(self, code: str, text: str) -> None:
        """Refuse all of them."""
        for request in self.requests:
            request.refuse(code, text)
