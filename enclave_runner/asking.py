"""Ask for many images over one session: never more at once than the head worker takes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import PartoptError, ServiceError
from .client import Answer, Client

# Refusals that end by themselves.
PASSING = ("busy", "starting", "tail-lost")
_PAUSE_S = 0.05


@dataclass
class _Asked:
    path: Path
    image: bytes
    number: int
    since: float = field(default_factory=time.monotonic)


def ask_all(
    client: Client,
    paths: Iterable[Path],
    read: Callable[[Path], bytes],
    window: int,
    patience: float = 60.0,
) -> Iterator[tuple[Path, Answer | PartoptError]]:
    """Each image with its answer, or with what went wrong; one failure costs no other's answer.

    Args:
        client: The session.
        paths: Images; in memory are only those that are under way.
        read: Gives an image's bytes, or raises PartoptError.
        window: Most requests under way.
        patience: Seconds for which an image is asked for again while the service is busy, or starts
            a worker again.
    """
    under_way: deque[_Asked] = deque()
    for path in paths:
        if len(under_way) >= window:
            yield _collected(client, under_way.popleft(), patience)
        try:
            image = read(path)
            under_way.append(_Asked(path, image, client.submit(image)))
        except PartoptError as error:
            # Answers in the order of the images.
            yield from (_collected(client, asked, patience) for asked in under_way)
            under_way.clear()
            yield path, error
    yield from (_collected(client, asked, patience) for asked in under_way)


def _collected(
    client: Client, asked: _Asked, patience: float
) -> tuple[Path, Answer | PartoptError]:
    pause = _PAUSE_S
    while True:
        try:
            return asked.path, client.collect(asked.number)
        except ServiceError as error:
            if error.code not in PASSING or time.monotonic() - asked.since > patience:
                return asked.path, error
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
            try:
                asked.number = client.submit(asked.image)
            except PartoptError as broken:
                return asked.path, broken
        except PartoptError as error:
            return asked.path, error
