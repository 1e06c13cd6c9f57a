"""The jobs of one search in its study: posted, taken by compare-and-set, lost, failed, finished.

A job is a trial that waits; whoever makes it run has it alone. What ends for another reason than
with its result ends as failed, and an attribute says which: `FAILED` (the attack), `LOST` (its
worker fell silent), `RETURNED` (its worker was told to stop), `WITHDRAWN` (it is not wanted).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from .jobs import JobOrder
from .leases import LEASE, Silence
from .plan import Job
from .sampler import PRIVACY
from .storage import CLAIM, whereabouts

JOB = "job"  # attribute of a trial: the order, as data
FAILED = "failed"  # what the attack failed with, and what it cost
LOST = "lost"
RETURNED = "returned"
WITHDRAWN = "withdrawn"
SEAT = "seat"  # attribute of the trial by which a coordinator holds its study
ENDED = "ended"  # of a seat that was left in order: the number of the last trial then
OPEN = "fleet"  # attribute of a study: whether workers are to look into it
PREMISES = "premises"
THREADS = "threads"
# In Optuna 5 a trial without a constraint counts as feasible; a worker cannot judge.
_INFEASIBLE = {f"constraints:{PRIVACY}": 1.0}


def take(storage: BaseStorage, trial: FrozenTrial) -> bool:
    """Whether a waiting trial is ours now: of all who try, one gets it."""
    try:
        return storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    except UpdateFinishedTrialError:
        return False  # withdrawn meanwhile


def end(storage: BaseStorage, trial_id: int, why: str, value: Any = True) -> bool:
    """End a trial without a result, and say why; False where it has ended already."""
    try:
        storage.set_trial_user_attr(trial_id, why, value)
        storage.set_trial_state_values(trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False
    return True


@dataclass
class Standing:
    """What became of the trials of one key.

    Attributes:
        complete: With results, the latest last.
        failed: The attack failed.
        lost: Their workers fell silent.
        flying: Waiting or running.
    """

    complete: list[FrozenTrial] = field(default_factory=list)
    failed: list[FrozenTrial] = field(default_factory=list)
    lost: list[FrozenTrial] = field(default_factory=list)
    flying: list[FrozenTrial] = field(default_factory=list)


class Board:
    """One study as its coordinator sees it.

    Args:
        study: The study.
        space: Distributions of the trials' parameters.
        patience: Seconds without renewal until a worker counts as gone.
    """

    def __init__(self, study: Study, space: dict[str, BaseDistribution], patience: float) -> None:
        self.study, self.storage = study, study._storage
        self._space = space
        self._silence = Silence(patience)
        self._by_key: dict[str, Standing] = {}
        self.losses = 0
        self.read()

    def read(self) -> None:
        """Look at all trials; failures before the last orderly end of a run are forgotten."""
        trials = [t for t in self.study.get_trials(deepcopy=False) if SEAT not in t.user_attrs]
        begun = last_end(self.study)
        found: dict[str, Standing] = defaultdict(Standing)
        self.losses = 0
        for trial in trials:
            standing = found[str(trial.user_attrs.get(CLAIM))]
            if trial.state == TrialState.COMPLETE:
                standing.complete.append(trial)
            elif not trial.state.is_finished():
                standing.flying.append(trial)
            elif trial.number > begun and FAILED in trial.user_attrs:
                standing.failed.append(trial)
            elif trial.number > begun and LOST in trial.user_attrs:
                standing.lost.append(trial)
                self.losses += 1
        self._by_key = dict(found)

    def of(self, key: str) -> Standing:
        """What became of the jobs of a key."""
        return self._by_key.get(key) or Standing()

    def flying(self) -> list[FrozenTrial]:
        """All jobs that wait or run."""
        return [t for s in self._by_key.values() for t in s.flying]

    def post(self, job: Job, order: JobOrder) -> None:
        """Put a job where workers look; it is there whole or not at all."""
        trial = create_trial(
            state=TrialState.WAITING,
            params={"cut": job[0], "attacker": job[1]},
            distributions=self._space,
            user_attrs={
                JOB: order.as_dict(),
                CLAIM: order.key,
                "cut_name": order.cut,
                "cut_index": job[0],
                "attacker": order.label,
            },
            system_attrs=_INFEASIBLE,
        )
        self.storage.create_new_trial(self.study._study_id, template_trial=trial)

    def expire(self) -> list[FrozenTrial]:
        """End the jobs of workers that are gone, or have not renewed their lease; return them."""
        running = [t for t in self.flying() if t.state == TrialState.RUNNING]
        lost = [t for t in running if self._is_lost(t)]
        return [t for t in lost if end(self.storage, t._trial_id, LOST)]

    def _is_lost(self, trial: FrozenTrial) -> bool:
        who = trial.user_attrs.get("owner")
        # Between taking a job and signing it a worker has no name yet.
        if who and whereabouts(who) == "gone":
            return True
        return self._silence.of(trial)

    def withdraw(self, keep: Collection[int] = ()) -> None:
        """End what waits, but for the trials in `keep`."""
        for trial in self.flying():
            if trial.state == TrialState.WAITING and trial._trial_id not in keep:
                end(self.storage, trial._trial_id, WITHDRAWN)

    def clear(self) -> None:
        """End whatever waits or runs: nobody wants it any more."""
        self.read()
        for trial in self.flying():
            end(self.storage, trial._trial_id, WITHDRAWN)


def last_end(study: Study) -> int:
    """Number of the last trial of the last run of this study that ended in order, or -1."""
    states = (TrialState.PRUNED,)
    ends = [t.user_attrs.get(ENDED) for t in study.get_trials(deepcopy=False, states=states)]
    return max((e for e in ends if isinstance(e, int)), default=-1)


def sign(storage: BaseStorage, trial_id: int, who: dict[str, Any], lease: dict[str, Any]) -> None:
    """Put a worker's name and its lease on the trial that it has taken."""
    storage.set_trial_user_attr(trial_id, LEASE, lease)
    storage.set_trial_user_attr(trial_id, "owner", who)


def open_studies(storage: BaseStorage) -> list[optuna.study._frozen.FrozenStudy]:
    """Studies that want workers."""
    with suppress(KeyError):  # removed in this moment
        return [s for s in storage.get_all_studies() if s.user_attrs.get(OPEN) == "open"]
    return []
