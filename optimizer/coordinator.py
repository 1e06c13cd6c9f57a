"""A search whose attacks other processes make: it posts jobs ahead, and takes results in order.

Evidence is taken up in the order in which one process would have made it; what workers made ahead
of that waits in the storage until the plan asks for it. So the answer is that of one process, bit
for bit, however many workers there are, whichever die, and however often this process is started
again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ..attackers.base import Attacker
from ..config import Attack
from ..errors import AttackError, StorageError
from ..notices import notice
from .artifacts import artifact_store, fetched
from .attempt import Failed
from .board import FAILED, OPEN, PREMISES, THREADS, Board, Standing
from .jobs import MOST_ALSO, JobOrder
from .leases import PATIENCE_S
from .plan import Job
from .premises import Premises
from .presence import Roll, called
from .recipes import recipe
from .rule import Evidence
from .search import Search
from .seats import seated
from .storage import finished
from .stored import StoredAttack

RETRIES = 1  # of an attack whose worker was lost
MORE_RETRIES = 4  # at most so many more, one for each worker lost at another attack
_RESTS = 6  # of the patience: so long a job rests whose worker was lost
_SPARE = 2  # jobs that wait, beyond one a worker
_LONELY_S = 20.0  # without any worker until that is said


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How patient a coordinator is.

    Attributes:
        patience: Seconds without renewal until a worker counts as gone.
        poll: Seconds between looks at the storage.
    """

    patience: float = PATIENCE_S
    poll: float = 0.25


class Helpers:
    """Workers that a coordinator has started itself; here none."""

    count = 0

    def check(self) -> None:
        """See to those that ended."""


class Fleet:
    """Has the attacks of searches made by workers; see `search.Crew`.

    Args:
        premises: What every attack stands on.
        threads: Compute threads of every attack; a study that was begun with others keeps those.
        helpers: Workers of our own.
        artifacts: Where pictures are, as in `artifacts.artifact_store`.
        pace: How patient to be.
    """

    purpose = "fleet"

    def __init__(
        self,
        premises: Premises,
        threads: int,
        helpers: Helpers | None = None,
        artifacts: str | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.premises, self.threads = premises, threads
        self.helpers = helpers or Helpers()
        self.artifacts = artifact_store(artifacts)
        self.pace = pace or Pace()

    def work(self, search: Search, study: Study) -> None:
        """Have made what `search` wants, and record it, until it wants nothing more.

        Raises:
            StorageError: Another process took this one for gone, or the storage fails.
        """

        def waiting(who: dict[str, Any]) -> None:
            search.stop_if_cancelled()
            what = f"waiting for the run that coordinates this search ({called(who)})"
            search.listener.on_progress(what, 0.0)

        with seated(study, self.pace.patience, waiting, 2 * self.pace.poll) as seat:
            course = _Coursing(self, search, study)
            with course.opened():
                while course.step():
                    if seat.lost.is_set():
                        raise StorageError(
                            f"another run took over the study {study.study_name!r}, since this one "
                            f"was silent for more than {self.pace.patience:.0f} s; run the same "
                            "command again"
                        )
                    time.sleep(self.pace.poll)


@dataclass
class _Coursing:
    """One search on its way."""

    fleet: Fleet
    search: Search
    study: Study
    board: Board = field(init=False)
    before: dict[str, FrozenTrial] = field(init=False)  # results that were there

    def __post_init__(self) -> None:
        search, pace = self.search, self.fleet.pace
        space: dict[str, BaseDistribution] = {
            "cut": IntDistribution(0, max(1, len(search.cuts) - 1)),
            "attacker": CategoricalDistribution(search.plan.panel),
        }
        self.board = Board(self.study, space, pace.patience)
        self.roll = Roll(pace.patience)
        self.before = finished(search.storage, self._keys())
        self.known = set(self.before)
        self.heard = time.monotonic()
        self.resting: dict[tuple[str, int], float] = {}
        self.lonely = self.pictureless = False
        self.storage: BaseStorage = self.study._storage

    def _keys(self) -> Iterator[str]:
        for cut in self.search.cuts:
            for name, attacker in self.search.panel.items():
                yield self.search.key(cut, attacker, name)
                safer = attacker.safer()
                if safer is not None:
                    yield self.search.key(cut, safer, name)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Within the block workers look into the study; after it nothing in it waits or runs."""
        attrs = self.study.user_attrs
        # Other numbers of threads give other sums: a study keeps to those that it was begun with.
        self.threads = int(attrs.get(THREADS, self.fleet.threads))
        self.study.set_user_attr(THREADS, self.threads)
        self.study.set_user_attr(PREMISES, self.fleet.premises.as_dict())
        self.study.set_user_attr(OPEN, "open")
        try:
            yield
        except BaseException:
            with suppress(Exception):  # what runs may end; what waits would wait for nobody
                self.board.read()
                self.board.withdraw()
                self.study.set_user_attr(OPEN, "closed")
            raise
        self.study.set_user_attr(OPEN, "closed")
        self.board.clear()

    def step(self) -> bool:
        """Take results, see to leases, post jobs; False once nothing more is wanted."""
        search, board = self.search, self.board
        search.stop_if_cancelled()
        board.read()
        if board.expire():
            board.read()
        while (job := search.foreseen((), {})) is not None and self._consumed(job):
            pass
        if job is None:
            return False
        workers = self.roll.call(self.storage, self.study._study_id)
        ahead = self._ahead(len(workers))
        self._show(ahead, len(workers))
        self.fleet.helpers.check()
        return True

    # ---- results

    def _attacker(self, job: Job) -> Attacker:
        return self.search._safer.get(job) or self.search.panel[job[1]]

    def _key(self, job: Job) -> str:
        return self.search.key(self.search.cuts[job[0]], self._attacker(job), job[1])

    def _found(self, job: Job) -> tuple[FrozenTrial, tuple[Attack, StoredAttack]] | None:
        """A result of a job that is evidence for this search."""
        key, second = self._key(job), job in self.search._safer
        trials = list(self.board.of(key).complete)
        if key in self.before:
            trials.insert(0, self.before[key])
        for trial in trials:
            usable = self.search.usable(job, trial.user_attrs, second)
            if usable is not None:
                return trial, usable
        return None

    def _consumed(self, job: Job) -> bool:
        """Take what became of a job as evidence; False while it is not known."""
        search, key = self.search, self._key(job)
        found = self._found(job)
        if found is not None:
            trial, (attack, stored) = found
            search.record(job, attack, stored)
            if key in self.known:
                search.outcome.reused += 1
            else:
                attrs = trial.user_attrs
                search.count(int(attrs.get("own_steps", 0)), float(attrs.get("own_seconds", 0.0)))
            self._fetch(trial, key)
            search.tell(search.cuts[job[0]], attack)
            return True
        standing = self.board.of(key)
        if standing.failed:
            search.failed(job, _failure(standing.failed[-1].user_attrs[FAILED]))
            return True
        if self._given_up(standing):
            search.failed(job, self._lost(job, standing), for_good=True)
            return True
        return False

    def _rests(self, key: str, standing: Standing) -> bool:
        """Whether a job whose worker was lost is to wait: what felled it may pass meanwhile."""
        if not standing.lost:
            return False
        since = self.resting.setdefault((key, len(standing.lost)), time.monotonic())
        return time.monotonic() - since < self.fleet.pace.patience / _RESTS

    def _given_up(self, standing: Standing) -> bool:
        """Whether the workers of a job were lost too often.

        One that kills its worker must not kill all of them. Where workers are lost at other attacks
        as well, as on machines that are taken away, the attack need not be the reason.
        """
        mine = len(standing.lost)
        elsewhere = self.board.losses - mine
        return not standing.flying and mine > RETRIES + min(elsewhere, MORE_RETRIES)

    def _lost(self, job: Job, standing: Standing) -> Failed:
        cut = self.search.cuts[job[0]].name
        where = "; ".join(called(t.user_attrs.get("owner") or {}) for t in standing.lost)
        why = f"{len(standing.lost)} workers were lost at it ({where})"
        notice(f"{job[1]} on {cut} was given up, and counts as leaking: {why}")
        return Failed(AttackError(why), repr(self._attacker(job)), 0, 0.0)

    def _fetch(self, trial: FrozenTrial, key: str) -> None:
        if not self.search.keeps_pictures or self.pictureless:
            return
        if not fetched(self.storage, trial, key, self.fleet.artifacts):
            self.pictureless = True
            notice(
                "pictures of attacks made elsewhere are not here; give find and workers the same "
                "--artifacts to have them in reports"
            )

    # ---- jobs

    def _ahead(self, workers: int) -> list[Job]:
        """Post what is wanted and not under way, as much as workers can take; what is wanted."""
        search, board = self.search, self.board
        room = workers + _SPARE
        known: dict[Job, Evidence] = {}
        wanted: list[Job] = []
        keep: set[int] = set()
        while (job := search.foreseen(wanted, known)) is not None:
            found = self._found(job)
            if found is not None:
                bench, attack = search.bench, found[1][0]
                known[job] = Evidence.of(attack, bench.scale, search.course.interval)
                continue
            wanted.append(job)
            standing = board.of(self._key(job))
            if standing.flying:
                keep.update(t._trial_id for t in standing.flying)
            elif job != wanted[0] and (standing.failed or self._given_up(standing)):
                continue  # its turn will come
            elif self._rests(self._key(job), standing):
                continue
            elif len(keep) >= room and len(wanted) > 1:
                wanted.pop()
                break
            else:
                board.post(job, self._order(job))
                keep.add(-len(wanted))
        board.withdraw(keep)
        return wanted

    def _order(self, job: Job) -> JobOrder:
        search, attacker = self.search, self._attacker(job)
        cut = search.cuts[job[0]]
        also = [c.name for c in search.likely_next(job[0]) if c.node != cut.node]
        again = job in search._safer
        return JobOrder(
            key=self._key(job),
            cut=cut.name,
            label=job[1],
            recipe=recipe(attacker),
            terms=search.terms(job),
            threads=self.threads,
            also=also[:MOST_ALSO],
            pictures=search.keeps_pictures,
            value=search.latencies[job[0]].total.ms if search.latencies else 0.0,
            second_for=search.key(cut, search.panel[job[1]], job[1]) if again else None,
        )

    # ---- what people see

    def _show(self, wanted: list[Job], workers: int) -> None:
        flying = self.board.flying()
        running = sum(t.state == TrialState.RUNNING for t in flying)
        done = len(self.search.outcome.evidence)
        left = len(self.search.cuts) * len(self.search.panel) - done
        text = (
            f"{workers} worker{'' if workers == 1 else 's'}: {done} attacks done, {running} "
            f"running, {len(flying) - running} waiting{self._estimate(left, workers)}"
        )
        self.search.listener.on_progress(text, done / max(1, done + left))
        now = time.monotonic()
        if workers:
            self.heard = now
        elif now - self.heard > _LONELY_S and not self.lonely:
            self.lonely = True
            notice(
                "no worker is there yet: start some with partopt worker --storage, the model, its "
                "weights and the same images"
            )

    def _estimate(self, left: int, workers: int) -> str:
        """At most how long what is left takes, by what attacks took so far."""
        took = [a.seconds for a in self.search.outcome.attacks.values() if a.seconds]
        if not took or not workers:
            return ""
        seconds = left * sum(took) / len(took) / workers
        return f", at most {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _failure(told: Any) -> Failed:
    """A failure as a worker wrote it down."""
    told = told if isinstance(told, dict) else {}
    return Failed(
        AttackError(str(told.get("note", "its worker gave no reason"))),
        str(told.get("settings", "")),
        int(told.get("image_steps", 0)),
        float(told.get("seconds", 0.0)),
    )


def threads_for(workers: int) -> int:
    """Compute threads of one attack, where so many run on this machine at a time."""
    return max(1, torch.get_num_threads() // max(1, workers))
