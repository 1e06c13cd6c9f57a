"""A queue in which nobody starves: whoever used the least computing time is next.

Owners (addresses, or keys) take turns, and within an owner its sessions. A full queue takes a
newcomer in and gives back the newest request of whoever has the most waiting.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Session(Protocol):
    """Whose requests they are."""

    owner: str


class Waits(Protocol):
    """What waits: whose it is, and its size in bytes."""

    @property
    def session(self) -> Session:
        """Whose it is."""

    @property
    def size(self) -> int:
        """Bytes."""


T = TypeVar("T", bound=Waits)
_LEAST_S = 1e-4  # a turn costs something even if it takes no time


@dataclass
class _Line(Generic[T]):
    """What waits of a session, and the seconds that it used."""

    waiting: deque[T] = field(default_factory=deque)
    used: float = 0.0


@dataclass
class _Owner(Generic[T]):
    """The sessions of an owner; seconds that they used, and of the one that had the last turn."""

    lines: dict[int, _Line[T]] = field(default_factory=dict)
    used: float = 0.0
    turn: float = 0.0

    @property
    def count(self) -> int:
        return sum(len(line.waiting) for line in self.lines.values())


class FairQueue(Generic[T]):
    """Requests of many clients. Safe for several threads.

    Args:
        most: Requests that may wait.
        most_bytes: Bytes of them.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._owners: dict[str, _Owner[T]] = {}
        self._count = self._bytes = 0
        self._turn = 0.0
        self._some = threading.Condition()

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._count

    def put(self, item: T) -> list[T]:
        """Let `item` wait; returns those that had to go for it, perhaps itself."""
        with self._some:
            owner = self._owners.get(item.session.owner)
            if owner is None:
                owner = self._owners[item.session.owner] = _Owner()
            line = owner.lines.get(id(item.session))
            if line is None:
                line = owner.lines[id(item.session)] = _Line()
            if not owner.count:  # time in which it asked for nothing is not saved up
                owner.used = max(owner.used, self._turn)
            if not line.waiting:
                line.used = max(line.used, owner.turn)
            line.waiting.append(item)
            self._add(item, 1)
            gone = []
            while self._count > self._most or self._bytes > self._most_bytes:
                gone.append(self._take_from_greediest(item))
            self._some.notify()
            return gone

    def take(self, timeout: float | None = None) -> T | None:
        """The next request, or None after `timeout` seconds."""
        with self._some:
            if not self._count and (
                timeout == 0 or not self._some.wait_for(lambda: self._count > 0, timeout)
            ):
                return None
            owner = min((o for o in self._owners.values() if o.count), key=lambda o: o.used)
            line = min((x for x in owner.lines.values() if x.waiting), key=lambda x: x.used)
            self._turn, owner.turn = owner.used, line.used
            owner.used += _LEAST_S
            line.used += _LEAST_S
            item = line.waiting.popleft()
            self._add(item, -1)
            return item

    def charge(self, session: Session, seconds: float) -> None:
        """Count computing time that a request of `session` took."""
        with self._some:
            owner = self._owners.get(session.owner)
            if owner is not None and id(session) in owner.lines:
                owner.used += seconds
                owner.lines[id(session)].used += seconds

    def leave(self, session: Session) -> list[T]:
        """Forget a session; returns what waited of it."""
        with self._some:
            owner = self._owners.get(session.owner)
            line = owner.lines.pop(id(session), None) if owner is not None else None
            if owner is not None and not owner.lines:
                del self._owners[session.owner]
            left = list(line.waiting) if line is not None else []
            for item in left:
                self._add(item, -1)
            return left

    def _add(self, item: T, sign: int) -> None:
        self._count += sign
        self._bytes += sign * item.size

    def _take_from_greediest(self, newcomer: T) -> T:
        """By bytes where those are too many, else by number; the newcomer's own on a tie."""
        by_bytes = self._bytes > self._most_bytes

        def weight(line: _Line[T]) -> int:
            return sum(x.size for x in line.waiting) if by_bytes else len(line.waiting)

        own = newcomer.session
        _, owner = max(
            self._owners.items(),
            key=lambda o: (sum(map(weight, o[1].lines.values())), o[0] == own.owner),
        )
        _, line = max(
            owner.lines.items(),
            key=lambda x: (weight(x[1]), x[0] == id(own)),
        )
        item = line.waiting.pop()
        self._add(item, -1)
        return item
