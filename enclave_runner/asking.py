"""Ask for many images over one session: never more at once than the head worker takes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import PartoptError, ServiceError
from .client import Answer, Client

# Refusals that end by themselves; by some of them the session is over, and another is needed.
PASSING = ("busy", "starting", "tail-lost", "full", "idle")
_OVER = ("full", "idle")
_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


@dataclass
class _Asked:
    path: Path
    image: bytes
    client: Client
    number: int
    since: float = field(default_factory=time.monotonic)


def connected(connect: Callable[[], Client], patience: float = 60.0) -> Client:
    """A session, asked for again while the head worker is full or starts.

    Raises:
        PartoptError: As `connect` raises, or still full after `patience` seconds.
    """
    end, pause = time.monotonic() + patience, _PAUSE_S
    while True:
        try:
            return connect()
        except ServiceError as error:
            if error.code not in PASSING or time.monotonic() + pause > end:
                raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


class Asking:
    """Asks over a session, and over another where the head worker gave its place away.

    Args:
        connect: Makes a session.
        patience: Seconds for which an image is asked for again while the service is busy, full, or
            starts a worker again.

    Attributes:
        client: The session.

    Raises:
        PartoptError: As `connected`.
    """

    def __init__(self, connect: Callable[[], Client], patience: float = 60.0) -> None:
        self._connect, self._patience = connect, patience
        self.client = connected(connect, patience)

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def all(
        self, paths: Iterable[Path], read: Callable[[Path], bytes], window: int
    ) -> Iterator[tuple[Path, Answer | PartoptError]]:
        """Each image with its answer, or what went wrong; one failure costs no other's answer.

        Args:
            paths: Images; in memory are only those that are under way.
            read: Gives an image's bytes, or raises PartoptError.
            window: Most requests under way.
        """
        under_way: deque[_Asked] = deque()
        for path in paths:
            if len(under_way) >= window:
                yield self._collected(under_way.popleft())
            try:
                image = read(path)
                under_way.append(self._asked(path, image))
            except PartoptError as error:
                # Answers in the order of the images.
                yield from map(self._collected, under_way)
                under_way.clear()
                yield path, error
        yield from map(self._collected, under_way)

    def _asked(self, path: Path, image: bytes) -> _Asked:
        """Submit an image, where need be over a new session."""
        try:
            return _Asked(path, image, self.client, self.client.submit(image))
        except ServiceError as error:
            if error.code not in _OVER:
                raise
            self._renew(self.client)
            return _Asked(path, image, self.client, self.client.submit(image))

    def _renew(self, old: Client) -> None:
        """Another session in the place of `old`, unless that was done."""
        if self.client is old:
            old.close()
            self.client = connected(self._connect, self._patience)

    def _collected(self, asked: _Asked) -> tuple[Path, Answer | PartoptError]:
        pause = _PAUSE_S
        while True:
            try:
                return asked.path, asked.client.collect(asked.number)
            except ServiceError as error:
                if error.code not in PASSING or time.monotonic() - asked.since > self._patience:
                    return asked.path, error
                over = error.code in _OVER
            except PartoptError as error:
                return asked.path, error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            try:
                if over:
                    self._renew(asked.client)
                again = self._asked(asked.path, asked.image)
            except PartoptError as broken:
                return asked.path, broken
            asked.client, asked.number = again.client, again.number
