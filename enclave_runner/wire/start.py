"""What a worker is told at its start. It comes from the host, so every value is bounded."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...errors import FrameError
from .transport import MAX_SLOTS, NAMES

MAX_KEYS = 800  # a start line has 64 KiB


@dataclass(frozen=True, kw_only=True)
class Start:
    """Settings of a worker.

    Attributes:
        transport: ``shm``, ``tcp`` or ``file``.
        area: Path of the shared memory or folder of the files ("" where a descriptor is inherited).
        slots: Frames under way, at most.
        batch: Images a run, at most.
        threads: Compute threads.
        queue: Requests that wait in the head worker; more are answered "busy".
        host, port: Where clients connect (head), or where the head listens for the tail (tail).
        token: What the tail says first, 32 hex digits.
        timeout: Seconds until a silent tail is given up.
        opened: Whether the orchestrator opens the weights at once: until then the head worker is
            starting, not locked.
        device: ``cpu`` or ``cuda`` (tail).
        descriptor: Inherited descriptor of the shared memory (tail), or -1.
        clients: Public keys (64 hex digits each) of which a client must have one; none: anybody may
            connect, on loopback alone.
    """

    transport: str
    area: str
    slots: int
    batch: int
    threads: int
    queue: int
    host: str
    port: int
    token: str
    timeout: float = 60.0
    opened: bool = False
    device: str = "cpu"
    descriptor: int = -1
    clients: tuple[str, ...] = ()

    @property
    def instance(self) -> str:
        """The service's name: 16 hex digits that stand in every frame, and tell no token."""
        return hashlib.sha256(b"partopt instance" + self.token.encode()).hexdigest()[:16]

    def to_event(self) -> dict[str, Any]:
        """As a line on the control connection."""
        return asdict(self)


_BOUNDS = {
    "slots": (1, MAX_SLOTS),
    "batch": (1, 1024),
    "threads": (1, 1024),
    "queue": (1, 4096),
    "port": (0, 65535),
    "descriptor": (-1, 1 << 20),
}


def start_from(event: dict[str, Any] | None) -> Start:
    """Check a start line.

    Raises:
        FrameError: A value that is missing, unknown or out of bounds.
    """
    try:
        start = Start(**(event or {}))
    except TypeError:
        raise FrameError(
            "malformed", "the start line lacks a setting or has an unknown one"
        ) from None
    for name, (low, high) in _BOUNDS.items():
        value = getattr(start, name)
        if type(value) is not int or not low <= value <= high:
            raise FrameError("malformed", f"the start line has {name} out of bounds")
    texts = (start.area, start.host, start.token, start.device)
    if any(type(t) is not str or len(t) > 1000 for t in texts) or start.transport not in NAMES:
        raise FrameError("malformed", "the start line has a text that cannot be used")
    if type(start.opened) is not bool:
        raise FrameError("malformed", "the start line has no yes or no for opened")
    if type(start.timeout) not in (int, float) or not 0 < start.timeout <= 3600:
        raise FrameError("malformed", "the start line has a timeout out of bounds")
    return replace(start, clients=_keys(start.clients))


def _keys(said: Any) -> tuple[str, ...]:
    """Clients' public keys, checked."""
    if not isinstance(said, (list, tuple)) or len(said) > MAX_KEYS:
        raise FrameError("malformed", "the start line has no list of clients' keys")
    for key in said:
        if type(key) is not str or not re.fullmatch("[0-9a-f]{64}", key):
            raise FrameError("malformed", "the start line has a client's key that is none")
    return tuple(said)
