"""Which workers there are: each says so, again and again, in the studies that it could work for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from optuna.storages import BaseStorage

from .storage import whereabouts

_PREFIX = "worker "


@dataclass(frozen=True)
class Present:
    """A worker that was heard of lately: its name, and what it is at."""

    name: str
    job: str


def called(who: Mapping[str, Any]) -> str:
    """How a worker or a coordinator is named."""
    return f"{who.get('host', 'an unknown host')}, process {who.get('pid', '?')}"


def _place(who: Mapping[str, Any]) -> str:
    return f"{_PREFIX}{called(who)} ({str(who.get('claim'))[:8]})"


def announce(storage: BaseStorage, study_id: int, who: Mapping[str, Any], job: str) -> None:
    """Say that a worker is there, and what it is at."""
    value = {"owner": dict(who), "job": job, "at": round(time.time(), 1)}
    storage.set_study_user_attr(study_id, _place(who), value)


def leave(storage: BaseStorage, study_id: int, who: Mapping[str, Any]) -> None:
    """Say that a worker is there no more."""
    with suppress(Exception):  # it counts as gone soon anyway
        storage.set_study_user_attr(study_id, _place(who), None)


class Roll:
    """The workers of one study, by a coordinator's own clock.

    Args:
        patience: Seconds without a word until a worker counts as gone.
    """

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._heard: dict[str, tuple[Any, float]] = {}

    def call(self, storage: BaseStorage, study_id: int) -> list[Present]:
        """Those who are there; those who are gone are struck off."""
        found = []
        for name, said in storage.get_study_user_attrs(study_id).items():
            if not name.startswith(_PREFIX) or not isinstance(said, dict):
                continue
            before, since = self._heard.get(name, (None, self._clock()))
            if before != said.get("at"):
                since = self._clock()
            self._heard[name] = (said.get("at"), since)
            who = said.get("owner") or {}
            if whereabouts(who) == "gone" or self._clock() - since > self._patience:
                leave(storage, study_id, who)
            else:
                found.append(Present(name.removeprefix(_PREFIX), str(said.get("job", ""))))
        return found
