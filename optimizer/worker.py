"""A worker: takes waiting jobs out of a storage, attacks, and writes what came of it.

It trusts nothing in the storage but names and numbers: model, weights and images are its own, and a
job is done only if its own inputs come to the job's key.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from ..attackers.base import Fitted, Key
from ..errors import ConfigError, PartoptError, StorageError, UsageError
from ..graph.build import Cut
from ..notices import notice
from .artifacts import artifact_store, keep_pictures
from .attempt import Bench, Failed, Reached
from .board import FAILED, JOB, PREMISES, RETURNED, end, open_studies, sign, take
from .jobs import JobOrder
from .leases import PATIENCE_S, Renewed, lease
from .premises import Own, Premises, UnfitError
from .presence import announce, leave
from .storage import owner
from .stored import SECOND_FOR, StoredAttack, scores_of

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

_CUTS_KEPT = 2  # of how many cuts fitted attackers stay, for those that are built on them
_MOST_PAUSE_S = 1.0
_SAID_S = 5.0  # between two announcements


class Stopped(BaseException):
    """The worker was told to end, or its job was taken from it; no failure of the attack."""


@dataclass(frozen=True, kw_only=True)
class WorkerPace:
    """How a worker waits.

    Attributes:
        idle: Seconds without a job after which it ends; None waits for ever.
        patience: Seconds without renewal until others take it for gone.
    """

    idle: float | None = None
    patience: float = PATIENCE_S


@dataclass
class _Place:
    """A study that we could work for, and what its attacks stand on."""

    study_id: int
    name: str
    bench: Bench
    cuts: dict[str, Cut]
    fitted: dict[str, dict[Key, Fitted]] = field(default_factory=dict)

    def members(self, cut: str) -> dict[Key, Fitted]:
        """Attackers fitted already at a cut, for those that are built on them."""
        found = self.fitted.pop(cut, {})
        self.fitted[cut] = found
        for old in list(self.fitted)[:-_CUTS_KEPT]:
            del self.fitted[old]
        return found


class Worker:
    """Works for any study of a storage whose premises are ours.

    Args:
        storage: The storage.
        own: Model, images and device.
        pace: How it waits.
        artifacts: Where pictures go, as in `artifacts.artifact_store`.
        on_progress: Called with what is being done and the share of it.
    """

    def __init__(
        self,
        storage: BaseStorage,
        own: Own,
        pace: WorkerPace | None = None,
        artifacts: str | None = None,
        on_progress: Callable[[str, float], None] = lambda what, share: None,
    ) -> None:
        self.storage, self.own = storage, own
        self.pace = pace or WorkerPace()
        self.artifacts: ArtifactStore = artifact_store(artifacts)
        self.on_progress = on_progress
        self.who = owner()
        self.done = 0
        self.refused: dict[str, str] = {}
        self._places: dict[int, _Place] = {}
        self._benches: dict[str, Bench] = {}
        self._cuts = {cut.name: cut for cut in own.graph.cuts("all")}
        self._stop, self._last = threading.Event(), threading.Event()
        self._said = 0.0

    def stop(self, *, after_this: bool = False) -> None:
        """End: give back the job at hand, or make it to its end first."""
        self._last.set()
        if not after_this:
            self._stop.set()

    def run(self) -> int:
        """Work until told to stop, or idle for too long; return how many jobs were done.

        Raises:
            UnfitError: All studies that want workers are of other inputs than ours, and no job was
                done.
            StorageError: The storage fails.
        """
        since, pause = time.monotonic(), 0.05
        try:
            while not self._last.is_set():
                if self._one():
                    since, pause = time.monotonic(), 0.05
                    continue
                if self.pace.idle is not None and time.monotonic() - since > self.pace.idle:
                    break
                self._last.wait(pause)
                pause = min(1.5 * pause, _MOST_PAUSE_S)
        finally:
            for place in self._places.values():
                leave(self.storage, place.study_id, self.who)
        return self.done

    # ---- which job

    def _one(self) -> bool:
        """Do one job; False where there is none."""
        places = self._looked()
        self._announce(places, "")
        for place in places:
            for trial in self._waiting(place):
                order = self._ours(place, trial)
                if order is not None and take(self.storage, trial):
                    self._do(place, trial, order)
                    return True
        return False

    def _looked(self) -> list[_Place]:
        """Studies that want workers and whose premises are ours."""
        studies = open_studies(self.storage)
        found = []
        for study in studies:
            place = self._places.get(study._study_id) or self._place(study)
            if place is not None:
                found.append(place)
        if studies and not found and not self.done:
            raise UnfitError(next(iter(self.refused.values())))
        return found

    def _place(self, study: Any) -> _Place | None:
        try:
            premises = Premises.of_dict(study.user_attrs.get(PREMISES))
            bench = self._benches.get(premises.key)
            if bench is None:
                if premises.key in self.refused:
                    return None
                bench = self._benches[premises.key] = self.own.bench(premises)
        except (UnfitError, ConfigError) as error:
            self._refuse(study, error)
            return None
        place = _Place(study._study_id, study.study_name, bench, self._cuts)
        self._places[study._study_id] = place
        return place

    def _refuse(self, study: Any, error: PartoptError) -> None:
        told = study.user_attrs.get(PREMISES)
        key = Premises.of_dict(told).key if isinstance(error, UnfitError) else study.study_name
        if key not in self.refused:
            self.refused[key] = f"no job of study {study.study_name!r} is taken: {error}"
            if self.done or len(self.refused) > 1:
                notice(self.refused[key])

    def _waiting(self, place: _Place) -> list[FrozenTrial]:
        """Jobs, those first at cuts at which we have fitted something."""
        states = (TrialState.WAITING,)
        try:
            trials = self.storage.get_all_trials(place.study_id, deepcopy=False, states=states)
        except KeyError:
            return []  # the study was removed
        jobs = [t for t in trials if JOB in t.user_attrs]
        here = place.fitted
        return sorted(jobs, key=lambda t: (t.user_attrs.get("cut_name") not in here, t.number))

    def _ours(self, place: _Place, trial: FrozenTrial) -> JobOrder | None:
        """The order of a job, if our own inputs come to its key."""
        try:
            order = JobOrder.of_dict(trial.user_attrs[JOB])
            cut = place.cuts.get(order.cut)
            if cut is None:
                raise ConfigError(f"the model has no cut {order.cut!r}")
            store, sides = place.bench.store, place.bench.sides
            if order.key_of(cut, order.attacker(), store.key, sides) != order.key:
                raise ConfigError(
                    f"{order.label} on {order.cut} has another key by this worker's own code and "
                    "inputs; install the same versions of partopt and of packages with attackers"
                )
        except (ConfigError, UsageError) as error:
            self._leave_alone(place, str(error))
            return None
        return order

    def _leave_alone(self, place: _Place, why: str) -> None:
        key = f"{place.name} {why}"
        if key not in self.refused:
            self.refused[key] = f"a job of study {place.name!r} is not taken: {why}"
            notice(self.refused[key])

    # ---- the job

    def _do(self, place: _Place, trial: FrozenTrial, order: JobOrder) -> None:
        what, number = f"{order.label} on {order.cut}", trial._trial_id
        try:
            sign(self.storage, number, self.who, lease(0))
            self._announce([place], what, now=True)
            with Renewed(self.storage, number, self.pace.patience) as renewed:
                reached = self._attack(place, order, what, renewed)
                self._hand_in(trial, order, reached, renewed)
        except UpdateFinishedTrialError:
            return  # others took us for gone, or nobody wants it any more
        except Failed as failure:
            told = {
                "note": str(failure),
                "settings": failure.settings,
                "image_steps": failure.image_steps,
                "seconds": round(failure.seconds, 3),
            }
            with suppress(UpdateFinishedTrialError):
                self.storage.set_trial_user_attr(number, "note", str(failure))
                end(self.storage, number, FAILED, told)
            self.done += 1
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        except Stopped:
            if self._stop.is_set():
                end(self.storage, number, RETURNED)
        except BaseException:
            with suppress(Exception):
                end(self.storage, number, RETURNED)
            raise
        else:
            self.done += 1

    def _attack(self, place: _Place, order: JobOrder, what: str, renewed: Renewed) -> Reached:
        def progress(share: float) -> None:
            if self._stop.is_set() or renewed.lost.is_set():
                raise Stopped
            self._announce([place], what)
            self.on_progress(what, share)

        cut = place.cuts[order.cut]
        members = {} if order.terms.private else place.members(order.cut)
        also = [place.cuts[name] for name in order.also if name in place.cuts]
        before = torch.get_num_threads()
        torch.set_num_threads(order.threads)
        try:
            wish = order.terms.wish(also, members, progress)
            return order.terms.attempted(place.bench, cut, order.attacker(), wish)
        finally:
            torch.set_num_threads(before)

    def _hand_in(
        self, trial: FrozenTrial, order: JobOrder, reached: Reached, renewed: Renewed
    ) -> None:
        """Write a result; while the storage is away, again and again as long as our lease lasts."""
        deadline = time.monotonic() + self.pace.patience
        while True:
            try:
                self._write(trial._trial_id, order, reached)
                return
            except (UpdateFinishedTrialError, StorageError, KeyboardInterrupt):
                raise
            except Exception:
                if renewed.lost.is_set() or time.monotonic() > deadline:
                    raise
                with suppress(Exception):
                    self.storage.remove_session()
                time.sleep(1.0)

    def _write(self, number: int, order: JobOrder, reached: Reached) -> None:
        attributes: dict[str, Any] = {
            **StoredAttack.of(reached, order.key).to_attrs(),
            **scores_of(reached),
            "own_steps": reached.own_steps,
            "own_seconds": round(reached.own_seconds, 3),
            "threads": order.threads,
            "device": self.own.device,
        }
        if order.second_for is not None:
            attributes[SECOND_FOR] = order.second_for
        for name, value in attributes.items():
            self.storage.set_trial_user_attr(number, name, value)
        if order.pictures:
            keep_pictures(self.storage, number, reached, order.key, self.artifacts)
        self.storage.set_trial_state_values(number, TrialState.COMPLETE, [order.value])

    def _announce(self, places: list[_Place], job: str, now: bool = False) -> None:
        if not now and time.monotonic() - self._said < min(_SAID_S, self.pace.patience / 4):
            return
        self._said = time.monotonic()
        for place in places:
            with suppress(KeyError):
                announce(self.storage, place.study_id, self.who, job)
