"""Leases: whoever is at a trial says so again and again; who falls silent is taken for gone.

No two machines' clocks are compared. A lease holds a number that its owner raises; another process
watches, by its own clock, for how long the number stays the same.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

LEASE = "lease"  # attribute of a trial: how often its owner has renewed it, and when
PATIENCE_S = 60.0  # without renewal until the owner counts as gone
BEATS = 12  # renewals that fit into that
_SURELY = 10  # times the patience after which the owner's own clock is enough


def lease(count: int) -> dict[str, Any]:
    """A lease as it is stored; the time is the owner's, seconds since 1970."""
    return {"beat": count, "at": round(time.time(), 1)}


class Renewed:
    """Within the context, the lease of a trial is renewed from a thread of its own.

    Attributes:
        lost: Set once another process has ended the trial.
    """

    def __init__(self, storage: BaseStorage, trial_id: int, patience: float = PATIENCE_S) -> None:
        self._storage, self._trial_id = storage, trial_id
        self._every = patience / BEATS
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self.lost = threading.Event()

    def __enter__(self) -> Renewed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _renew(self) -> None:
        count = 0
        while not self._ended.wait(self._every):
            count += 1
            try:
                self._storage.set_trial_user_attr(self._trial_id, LEASE, lease(count))
            except UpdateFinishedTrialError:
                self.lost.set()
                return
            except Exception:
                # The database is away; those who would judge the lease cannot read it either.
                with contextlib.suppress(Exception):
                    self._storage.remove_session()


class Silence:
    """Which leases have not been renewed for longer than the patience, as far as it was watched.

    Args:
        patience: Seconds.
        clock: Of this process.
    """

    def __init__(
        self, patience: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._patience, self._clock = patience, clock
        self._seen: dict[int, tuple[Any, float, float]] = {}  # lease, since when, last looked at

    def of(self, trial: FrozenTrial) -> bool:
        """Whether the owner of a trial counts as gone; to be asked again and again."""
        mark, now = trial.user_attrs.get(LEASE), self._clock()
        before, since, looked = self._seen.get(trial._trial_id, (None, now, now))
        # Whoever did not look for a while, suspended for one, has watched nothing meanwhile.
        if before != mark or now - looked > self._patience / 2:
            since = now
        self._seen[trial._trial_id] = (mark, since, now)
        if now - since > self._patience:
            return True
        at = mark.get("at") if isinstance(mark, dict) else None
        return isinstance(at, int | float) and time.time() - at > _SURELY * self._patience
