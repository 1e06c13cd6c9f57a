"""One coordinator at a time: whoever holds the seat of a study, a trial whose lease it renews.

The seat is the unfinished seat trial of the lowest number. Everyone adds one, and takes it by
compare-and-set once no lower one is left; a silent holder's is ended by those who wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from .board import ENDED, SEAT, end
from .leases import LEASE, Renewed, Silence, lease
from .storage import owner, whereabouts

_PAUSE_S = 0.5
Waiting = Callable[[dict[str, Any]], None]


@contextmanager
def seated(
    study: Study, patience: float, waiting: Waiting = lambda who: None, pause: float = _PAUSE_S
) -> Iterator[Renewed]:
    """Within the block this process is the only coordinator of a study.

    Args:
        study: The study.
        patience: Seconds without renewal until another coordinator counts as gone.
        waiting: Called again and again, with who has the seat, while it is another.
        pause: Seconds between looks.

    Yields:
        The seat's lease; `lost` is set where others took this process for gone.
    """
    storage, silence = study._storage, Silence(patience)
    while True:
        mine = _seat(study)
        with Renewed(storage, mine, patience) as renewed:
            try:
                if not _mine_now(study, mine, renewed, silence, waiting, pause):
                    end(storage, mine, "lost")
                    continue
                yield renewed
            except BaseException:
                # No orderly end: who goes on counts what was lost so far.
                end(storage, mine, "left")
                raise
            with suppress(UpdateFinishedTrialError):
                storage.set_trial_user_attr(mine, ENDED, len(study.get_trials(deepcopy=False)) - 1)
                storage.set_trial_state_values(mine, TrialState.PRUNED)
            return


def _seat(study: Study) -> int:
    who = {SEAT: True, "owner": owner(), LEASE: lease(0)}
    trial = create_trial(
        state=TrialState.WAITING, user_attrs=who, system_attrs={"constraints:privacy": 1.0}
    )
    return study._storage.create_new_trial(study._study_id, template_trial=trial)


def _mine_now(
    study: Study,
    mine: int,
    renewed: Renewed,
    silence: Silence,
    waiting: Waiting,
    pause: float,
) -> bool:
    """Wait for the seat; False where somebody took us for gone meanwhile."""
    storage = study._storage
    while not renewed.lost.is_set():
        first = _first(study)
        if first is None:
            return False
        if first._trial_id == mine:
            try:
                return storage.set_trial_state_values(mine, TrialState.RUNNING)
            except UpdateFinishedTrialError:
                return False
        who = first.user_attrs.get("owner") or {}
        if whereabouts(who) == "gone" or silence.of(first):
            end(storage, first._trial_id, "lost")
            continue
        waiting(who)
        time.sleep(pause)
    return False


def _first(study: Study) -> FrozenTrial | None:
    states = (TrialState.WAITING, TrialState.RUNNING)
    seats = [t for t in study.get_trials(deepcopy=False, states=states) if SEAT in t.user_attrs]
    return min(seats, key=lambda t: t.number, default=None)
