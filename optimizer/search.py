"""Run the plan: fit attackers, score them, store every result as an Optuna trial, resume."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import joblib
import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import Trial, TrialState

from ..attackers.base import BEYOND, Attacker, Fitted, Key
from ..attackers.scoring import Score
from ..config import Attack, Curve
from ..errors import ConfigError
from ..graph.build import Cut
from ..hashing import hash_json
from ..notices import notice
from ..profilers.base import CutLatency, Duration
from .artifacts import keep_pictures
from .attempt import Bench, Failed, Reached
from .choose import Candidates, fastest
from .keys import ATTACK_VERSION, attack_key, plugin_source
from .leases import LEASE, Renewed, lease
from .limits import Doubt, Held, Limits
from .plan import Halving, Job, Plan
from .rule import Evidence, Grant, Verdict, judge
from .sampler import PRIVACY, NothingLeft, SuffixSampler, running_jobs
from .storage import (
    CLAIM,
    KILLED,
    alone,
    claimed,
    fail_orphans,
    finished,
    give_up,
    owner,
    spoken,
    whereabouts,
)
from .stored import AGAIN, SECOND_FOR, StoredAttack, scores_of
from .terms import AttackTerms

_CUTS_KEPT = 2  # of how many cuts fitted attackers stay, for those that are built on them


@dataclass
class Outcome:
    """All evidence of a search and what it cost.

    ``curves`` and ``doubts`` are of cuts that were confirmed, by index.
    """

    evidence: dict[Job, Evidence] = field(default_factory=dict)
    attacks: dict[Job, Attack] = field(default_factory=dict)
    stored: dict[Job, StoredAttack] = field(default_factory=dict)
    unplaced: dict[int, str] = field(default_factory=dict)
    curves: dict[int, Curve] = field(default_factory=dict)
    doubts: dict[int, Doubt] = field(default_factory=dict)
    run: int = 0
    reused: int = 0
    image_steps: int = 0
    seconds: float = 0.0
    study: str = ""


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a search asks and how far it goes.

    Attributes:
        threshold: Scores at or above it leak.
        interval: Whether the interval counts, or the mean alone, as in the published rule.
        exhaustive: Run every attacker on every cut at full budget, for comparison.
        first: Name of a cut and of an attacker to begin with; a leak proven there ends the search,
            and without one it goes on at least as far as that cut.
        attack: False runs nothing: only what the storage has is evidence.
        whole: Time of the whole model in the enclave; None where comparing with it is void.
        grant: What a cut that passes the rule may be called.
        promoted: Nodes of cuts that are never the answer.
        covers: Whether a cut that was attacked in full may stand for later ones.
        counted: Nodes of cuts for which none may.
        limits: What is allowed of single images.
        ceiling: An attack that is still rising below the threshold is made anew with more epochs,
            at most so many times its own; 1 leaves it as it is.
    """

    threshold: float
    interval: bool = True
    exhaustive: bool = False
    first: tuple[str, str] | None = None
    attack: bool = True
    whole: Duration | None = None
    grant: Grant = field(default_factory=Grant)
    promoted: frozenset[int] = frozenset()
    covers: bool = False
    counted: frozenset[int] = frozenset()
    limits: Limits = field(default_factory=Limits)
    ceiling: int = 1

    def aside(self) -> Course:
        """For attacks that are made besides a search's own: all of them, and none is the answer."""
        return replace(
            self,
            exhaustive=True,
            first=None,
            whole=None,
            grant=Grant(),
            promoted=frozenset(),
            covers=False,
            ceiling=1,
        )


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who is told while a search goes on.

    Attributes:
        on_progress: Called with what is being done and the share of that job.
        on_done: Called with each attack, and whether it proves a leak.
        on_tuned: Called with the cut, the attacker and the score of each setting tried.
    """

    on_progress: Callable[[str, float], None] = lambda what, share: None
    on_done: Callable[[Cut, Attack, bool], None] = lambda cut, attack, leaks: None
    on_tuned: Callable[[Cut, str, Score], None] = lambda cut, name, score: None


class Crew(Protocol):
    """Who makes the attacks of searches, where it is not the process of the search itself."""

    purpose: str

    def work(self, search: Search, study: optuna.Study) -> None:
        """Have made, and record, what `search` wants, until it wants nothing more."""


class Search:
    """One search over the cuts of one model.

    A subclass that does not certify has trials that are never feasible; one that keeps no pictures
    stores no reconstructions.

    Args:
        cuts: In execution order.
        latencies: Of the same cuts; none where nothing hangs on them.
        bench: Their features, the floor, and what else all attacks have in common.
        panel: Attackers by name, with their settings.
        course: What is asked, and how far the search goes.
        storage: Where trials are kept.
        listener: Is told of progress.
        crew: Who makes the attacks; None is this process.
    """

    purpose = "search"
    certifies = True
    keeps_pictures = True

    def __init__(
        self,
        cuts: Sequence[Cut],
        latencies: Sequence[CutLatency],
        bench: Bench,
        panel: Mapping[str, Attacker],
        course: Course,
        storage: BaseStorage,
        listener: Listener | None = None,
        crew: Crew | None = None,
    ) -> None:
        self.crew = crew
        self.cuts = list(cuts)
        self.latencies = list(latencies)
        self.bench = bench
        self.panel = dict(panel)
        self.course = course
        self.storage = storage
        self.listener = listener or Listener()
        self.candidates = Candidates(self.cuts, self.latencies, course.whole)
        self.names = [c.name for c in self.cuts]
        first = course.first
        self.plan = Plan(
            self.names,
            {n: a.rank for n, a in self.panel.items()},
            course.threshold,
            self._could_win,
            first=(self.names.index(first[0]), first[1]) if first else None,
            halving=self._halving() if course.covers else None,
        )
        self.outcome = Outcome()
        self.held = Held(
            limits=course.limits,
            threshold=course.threshold,
            scale=bench.scale,
            images=len(bench.floor),
        )
        self._safer: dict[Job, Attacker] = {}
        self._keys = {
            self.key(cut, attacker, name): (i, name)
            for i, cut in enumerate(self.cuts)
            for name, attacker in self.panel.items()
        }
        self._at_work: tuple[dict[Job, int], set[Job]] = {}, set()
        self._fitted: dict[int, dict[Key, Fitted]] = {}
        self._lock = threading.RLock()
        self._cancelled = threading.Event()

    def key(self, cut: Cut, attacker: Attacker, name: str = "") -> str:
        """Content hash of everything an attack's result depends on.

        `name` is the attacker's in the panel, for those to whom it says more than its settings.
        """
        return self.key_with(cut, attacker, self.bench.seed)

    def key_with(self, cut: Cut, attacker: Attacker, seed: int) -> str:
        """`key`, for attacks of another seed than the search's."""
        features, sides = self.bench.store.key, self.bench.sides
        return attack_key(cut, features, repr(attacker), plugin_source(attacker), sides, seed)

    def run(self, workers: int = 1) -> Outcome:
        """Reuse what the storage has, run what the plan wants, return all evidence.

        Ctrl-C leaves every finished trial in the storage; the same search goes on from there.
        Other processes may work with the same storage at the same time: what one of them is at is
        waited for, and its result is taken; what it leaves undone is done here.

        Raises:
            StorageError: The storage or the disk fails.
        """
        with spoken(self.storage):
            return self._run(workers)

    def _run(self, workers: int) -> Outcome:
        if self.crew is not None:
            study = self._study()
            self.outcome.study = study.study_name
            self.crew.work(self, study)
            return self.outcome
        with alone(self.storage, "claims"):
            study = self._study()
            self.outcome.study = study.study_name
            self._catch_up(study)
        before = torch.get_num_threads()
        torch.set_num_threads(max(1, before // workers))
        try:
            if workers == 1:
                self._work(study)
            else:
                joblib.Parallel(n_jobs=workers, backend="threading")(
                    joblib.delayed(self._work)(study) for _ in range(workers)
                )
        except BaseException:
            self._cancelled.set()
            raise
        finally:
            torch.set_num_threads(before)
        return self.outcome

    def _study(self) -> optuna.Study:
        identity = hash_json(
            [
                self.names,
                [self.key(cut, a, n) for cut in self.cuts for n, a in self.panel.items()],
                self.course.exhaustive,
                self.purpose,
                # A queue of its own: who works in one process takes nothing out of it.
                *([] if self.crew is None else [self.crew.purpose]),
            ]
        )
        study = optuna.create_study(
            storage=self.storage,
            study_name=f"partopt-{identity[:16]}",
            sampler=SuffixSampler(len(self.cuts), self.plan.panel, self._decide),
            direction="minimize",
            load_if_exists=True,
        )
        version = study.user_attrs.get("attack_version", ATTACK_VERSION)
        if version != ATTACK_VERSION:
            raise ConfigError(
                f"study {study.study_name!r} is of attack version {version}, this is "
                f"{ATTACK_VERSION}; give another --storage or remove the study"
            )
        study.set_user_attr("attack_version", ATTACK_VERSION)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(["total latency ms"])
        return study

    def _catch_up(self, study: optuna.Study) -> None:
        """Take results that others have finished meanwhile, and jobs that they died at.

        Who is at what is read first: what ends in between is then found among the results.
        """
        fail_orphans(study)
        self._at_work = self._claims()
        self._reuse()
        self._be_careful(study)

    def _reuse(self) -> None:
        """Take up what is finished, a second try only where the first is known to fail."""
        missing = {key: job for key, job in self._keys.items() if job not in self.outcome.evidence}
        seconds = {}
        for key, job in missing.items():
            safer = self.panel[job[1]].safer()
            if safer is not None:
                seconds[self.key(self.cuts[job[0]], safer, job[1])] = (job, key)
        found = finished(self.storage, [*missing, *seconds])
        for key, job in missing.items():
            if key in found:
                self._take_up(job, found[key].user_attrs, second=False)
        for key, (job, first) in seconds.items():
            known = job in self.outcome.evidence
            if not known and key in found and found[key].user_attrs.get(SECOND_FOR) == first:
                self._take_up(job, found[key].user_attrs, second=True)

    def _take_up(self, job: Job, attrs: dict[str, Any], second: bool) -> None:
        found = self.usable(job, attrs, second)
        if found is not None:
            self.record(job, *found)
            self.outcome.reused += 1

    def usable(
        self, job: Job, attrs: Mapping[str, Any], second: bool
    ) -> tuple[Attack, StoredAttack] | None:
        """What a trial holds of a job, or None where that is no evidence for this search."""
        stored = StoredAttack.from_attrs(attrs, self.bench.floors)
        if stored is None:
            return None  # not what a search writes: run it
        result = self.bench.score(stored.per_side).strict
        if not stored.complete and result.low < self.course.threshold:
            return None  # it stopped at a proof for a lower threshold: run it in full
        return self._shown(stored, job, AGAIN if second else ""), stored

    def _be_careful(self, study: optuna.Study) -> None:
        """What an earlier process was killed at, out of memory for one, is tried more safely."""
        names = {n: i for i, n in enumerate(self.names)}
        for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
            attrs = trial.user_attrs
            cut, attacker = attrs.get("cut_name"), attrs.get("attacker")
            if attrs.get(KILLED) and cut in names and attacker in self.panel:
                job = (names[cut], attacker)
                if job not in self._safer:
                    self._try_again(job)

    def _decide(self, running: set[Job]) -> Job | None:
        """The next job; `running` are those of this study, others may be at work in others."""
        with self._lock:
            seen, unseen = self._at_work
            job = self._next(running | seen.keys() | unseen)
            if job is None and unseen:
                # Whether another machine is still at it nobody here can tell: do it too.
                job = self._next((running - unseen) | seen.keys())
            return job

    def _claims(self) -> tuple[dict[Job, int], set[Job]]:
        """Jobs that processes of this machine are at, with their numbers; and those of others."""
        seen, unseen = {}, set()
        for key, who in claimed(self.storage, self._keys).items():
            if whereabouts(who) == "here":
                seen[self._keys[key]] = int(who["pid"])
            else:
                unseen.add(self._keys[key])
        return seen, unseen

    def _next(self, running: Collection[Job]) -> Job | None:
        if not self.course.attack:
            return None
        if not self.course.exhaustive:
            unplaced = self.unplaced()
            return self.plan.next(self.outcome.evidence, running, self.doubts(), unplaced)
        return self._next_of_all(running)

    def foreseen(self, running: Collection[Job], known: Mapping[Job, Evidence]) -> Job | None:
        """The job that would come next, were what is `known` evidence already."""
        if not self.course.attack:
            return None
        if self.course.exhaustive:
            return self._next_of_all({*running, *known})
        evidence = {**known, **self.outcome.evidence}
        return self.plan.next(evidence, running, self.doubts(), self.unplaced())

    def _next_of_all(self, running: Collection[Job]) -> Job | None:
        # Cut by cut: an attacker then finds fitted what it is built on.
        for i in reversed(range(len(self.cuts))):
            for attacker in self.plan.panel:
                job = (i, attacker)
                if job not in self.outcome.evidence and job not in running:
                    return job
        return None

    def _halving(self) -> Halving:
        counted = {i for i, cut in enumerate(self.cuts) if cut.node in self.course.counted}
        return Halving(full=counted, fastest=self._fastest)

    def _could_win(self, safe: Sequence[int], candidate: int) -> bool:
        if self.plan.first is not None and self.plan.first[0] == candidate:
            return True  # its verdict was asked for
        verdicts = self.verdicts()
        leaks = {i: verdicts[i].suffix_high for i in safe}
        return self.candidates.could_win(safe, candidate, leaks)

    def answer(self) -> int | None:
        """Index of the cut to use on the evidence so far, or None where none is safe.

        It is one that was attacked in full itself.
        """
        verdicts = self.verdicts()
        return self._fastest([i for i, v in enumerate(verdicts) if v.safe and v.complete])

    def _fastest(self, safe: Sequence[int]) -> int | None:
        verdicts = self.verdicts()
        allowed = [i for i in safe if self.cuts[i].node not in self.course.promoted]
        return fastest(self.candidates, allowed, {i: verdicts[i].suffix_high for i in allowed})

    def open(self) -> bool:
        """Whether a run would attack more."""
        return self._next(()) is not None

    def verdicts(self) -> list[Verdict]:
        """The rule applied to the evidence so far, by cut."""
        with self._lock:
            return judge(
                self.names,
                self.plan.panel,
                self.outcome.evidence,
                self.course.threshold,
                self.course.grant,
                self.unplaced(),
                self.doubts(),
                self.plan.cover(),
            )

    def doubts(self) -> dict[int, Doubt]:
        """Cuts that are not safe for another reason than their mean score, by index."""
        with self._lock:
            by_cut: dict[int, list[Attack]] = {}
            for (i, _), attack in self.outcome.attacks.items():
                by_cut.setdefault(i, []).append(attack)
            found = {i: self.held.doubt(attacks) for i, attacks in by_cut.items()}
            single = {i: doubt for i, doubt in found.items() if doubt is not None}
            return {**self.outcome.doubts, **single}

    def unplaced(self) -> dict[int, str]:
        """Cuts whose layout nobody knows and that no white-box attack has reached, and why."""
        with self._lock:
            through = {
                i
                for (i, name), attack in self.outcome.attacks.items()
                if self.panel[name].needs_head
                and attack.score is not None
                and BEYOND not in attack.note
            }
            return {i: why for i, why in self.outcome.unplaced.items() if i not in through}

    def _work(self, study: optuna.Study) -> None:
        pause = 0.05
        while not self._cancelled.is_set():
            with self._lock, alone(self.storage, "claims"):
                self._catch_up(study)
                mine = self._claim(study)
                waiting = mine is None and self._next(()) is not None
                others = self._at_work[0]
            if mine is not None:
                pause = 0.05
                self._one(study, *mine)
            elif waiting:
                self._wait(others, pause)
                pause = min(2 * pause, 0.5)
            else:
                return

    def _claim(self, study: optuna.Study) -> tuple[Trial, Job] | None:
        """Begin a trial for the next job; None where nothing is left to start now."""
        if self._decide(running_jobs(study)) is None:
            return None
        trial = study.ask()
        try:
            cut = trial.suggest_int("cut", 0, max(1, len(self.cuts) - 1))
            name = str(trial.suggest_categorical("attacker", self.plan.panel))
        except NothingLeft:
            study.tell(trial, state=TrialState.PRUNED)
            return None
        attributes = {
            "owner": owner(),
            LEASE: lease(0),
            CLAIM: self.key(self.cuts[int(cut)], self.panel[name], name),
            "cut_name": self.names[int(cut)],
            "attacker": name,
        }
        try:
            for key, value in attributes.items():
                trial.set_user_attr(key, value)
        except UpdateFinishedTrialError:
            return None  # another machine took the trial for an orphan: ask again
        return trial, (int(cut), name)

    def _wait(self, others: Mapping[Job, int], seconds: float) -> None:
        """Let somebody else finish a job that is needed here."""
        theirs = {job: pid for job, pid in others.items() if pid != os.getpid()}
        if theirs:
            (i, name), pid = next(iter(theirs.items()))
            self.listener.on_progress(f"waiting for process {pid}: {name} on {self.names[i]}", 0.0)
        self._cancelled.wait(seconds)

    def _one(self, study: optuna.Study, trial: Trial, job: Job) -> None:
        """Run one attack and store it, whatever becomes of it."""
        again = self._safer.get(job)
        try:
            with Renewed(self.storage, trial._trial_id):
                reached = self.attack(job, again or self.panel[job[1]])
        except Failed as failure:
            self._fail(study, trial, job, failure)
            return
        except BaseException:
            self._leave(study, trial)
            raise
        self.count(reached.own_steps, reached.own_seconds)
        cut = self.cuts[job[0]]
        stored = StoredAttack.of(reached, self.key(cut, again or self.panel[job[1]], job[1]))
        attributes = {**stored.to_attrs(), **scores_of(reached)}
        attributes["cut_name"] = cut.name
        attributes["cut_index"] = job[0]
        if again is not None:
            attributes[SECOND_FOR] = self.key(cut, self.panel[job[1]], job[1])
        attack = self._shown(stored, job, AGAIN if again is not None else "")
        try:
            for name, value in attributes.items():
                trial.set_user_attr(name, value)
            self.keep_pictures(trial, reached, stored.key)
            self.record(job, attack, stored)
            verdict = self.verdicts()[job[0]]
            margin = verdict.suffix_high - self.course.threshold
            trial.set_constraint(PRIVACY, margin if verdict.safe and self.certifies else 1.0)
            study.tell(trial, self.latencies[job[0]].total.ms if self.latencies else 0.0)
        except UpdateFinishedTrialError:
            # Only from a machine that shares the storage and took this process for dead.
            notice(f"another run took over {job[1]} on {cut.name}: the result is not stored")
            self.record(job, attack, stored)
        except BaseException:
            self._leave(study, trial)
            raise
        self.tell(cut, attack)

    def _fail(self, study: optuna.Study, trial: Trial, job: Job, failure: Failed) -> None:
        """Store a failure; without a second try it is the evidence, and counts as leaking."""
        with suppress(UpdateFinishedTrialError):
            trial.set_user_attr("note", str(failure))
            study.tell(trial, state=TrialState.FAIL)
        self.failed(job, failure)

    def failed(self, job: Job, failure: Failed, *, for_good: bool = False) -> None:
        """An attack failed: it is tried again with safer settings, or counts as leaking.

        For good, where that is not for the settings to mend.
        """
        if not for_good and job not in self._safer and self._try_again(job):
            return
        failed = Attack(
            attacker=job[1],
            settings=failure.settings,
            outcome="failed",
            note=str(failure),
            image_steps=failure.image_steps,
            seconds=failure.seconds,
        )
        self.record(job, failed)
        self.count(failure.image_steps, failure.seconds)
        self.tell(self.cuts[job[0]], failed)

    def _leave(self, study: optuna.Study, trial: Trial) -> None:
        """Stop, and leave the trial to whoever comes next, as far as the storage still lets us."""
        self._cancelled.set()
        try:
            study.tell(trial, state=TrialState.FAIL)
        except Exception:  # a full disk: the next search of this process must not wait for it
            give_up(trial.user_attrs.get("owner") or {})

    def _members(self, index: int) -> dict[Key, Fitted]:
        """Attackers fitted already at a cut, for those that are built on them."""
        with self._lock:
            fitted = self._fitted.setdefault(index, {})
            for old in list(self._fitted)[:-_CUTS_KEPT]:
                del self._fitted[old]
        return fitted

    def _try_again(self, job: Job) -> bool:
        """After a failure: once more, with safer settings. Until then the cut counts as leaking."""
        safer = self.panel[job[1]].safer()
        if safer is None:
            return False
        with self._lock:
            self._safer[job] = safer
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True

    def terms(self, job: Job, *, to_the_end: bool = False) -> AttackTerms:
        """What the attack of a job goes by.

        Training stops at proof of a leak, unless it is to go on `to_the_end`, as with settings that
        `--tune` tries, which nobody else is built on.
        """
        in_full = self.course.exhaustive or to_the_end
        return AttackTerms(
            seed=self.bench.seed,
            leaks_from=None if in_full else self.course.threshold,
            private=to_the_end,
            ceiling=1 if to_the_end else self.course.ceiling,
            threshold=self.course.threshold,
        )

    def attack(self, job: Job, attacker: Attacker, *, to_the_end: bool = False) -> Reached:
        """Attack the cut of a job, by its `terms`.

        Raises:
            Failed: The attack failed.
        """
        what = f"{job[1]} on {self.names[job[0]]}"

        def progress(share: float) -> None:
            self.stop_if_cancelled()
            self.listener.on_progress(what, share)

        terms, members = self.terms(job, to_the_end=to_the_end), self._members(job[0])
        wish = terms.wish(self.likely_next(job[0]), members, progress)
        return terms.attempted(self.bench, self.cuts[job[0]], attacker, wish)

    def keep_pictures(self, trial: Trial, reached: Reached, key: str) -> None:
        """Reconstructions beside originals, for reports and as an artifact of the trial."""
        if self.keeps_pictures:
            keep_pictures(self.storage, trial._trial_id, reached, key)

    def stop_if_cancelled(self) -> None:
        """Raise where the search was given up."""
        if self._cancelled.is_set():
            raise KeyboardInterrupt

    def likely_next(self, index: int) -> list[Cut]:
        """Cuts whose features the same pass should make: those not yet proven to leak."""
        verdicts = self.verdicts()
        order = [*reversed(range(index + 1)), *range(index + 1, len(self.cuts))]
        return [
            self.cuts[i]
            for i in order
            if self.course.exhaustive or verdicts[i].suffix_low < self.course.threshold
        ]

    def _shown(self, stored: StoredAttack, job: Job, *remarks: str) -> Attack:
        return stored.shown(job[1], self.bench, self.course.threshold, *remarks)

    def record(self, job: Job, attack: Attack, stored: StoredAttack | None = None) -> None:
        """Take an attack up as the evidence of its job; `stored` is what is kept of it."""
        with self._lock:
            if stored is not None:
                self.outcome.stored[job] = stored
                if stored.unplaced:
                    self.outcome.unplaced[job[0]] = stored.unplaced
            self.outcome.evidence[job] = Evidence.of(attack, self.bench.scale, self.course.interval)
            self.outcome.attacks[job] = attack

    def count(self, image_steps: int, seconds: float) -> None:
        """Add an attack that ran to what the search cost."""
        with self._lock:
            self.outcome.run += 1
            self.outcome.image_steps += image_steps
            self.outcome.seconds += seconds

    def tell(self, cut: Cut, attack: Attack) -> None:
        """Tell the listener of an attack."""
        floor = attack.low if self.course.interval else attack.score
        self.listener.on_done(cut, attack, floor is not None and floor >= self.course.threshold)
