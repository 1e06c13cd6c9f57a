"""Run the plan: fit attackers, score them, store every result as an Optuna trial, resume."""

from __future__ import annotations

import copy
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import joblib
import numpy as np
import optuna
import torch
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import Trial, TrialState

from ..attackers import pictures
from ..attackers.base import BEYOND, Attacker, Context, Fitted, Reconstruct, remark
from ..attackers.features import FeatureStore
from ..attackers.scoring import Score, corrected, score, ssim_of
from ..cache import cache_dir, written_to
from ..config import Attack
from ..datasets import at_resolution
from ..errors import ConfigError, PartoptError, StorageError
from ..graph import Cut
from ..hashing import derive_seed, hash_json
from ..notices import notice
from ..profilers.base import CutLatency, Duration
from ..sources import attack_source, file_digest
from .choose import Candidates, choose
from .pairs import arm, pairs_of
from .plan import Job, Plan
from .rule import Evidence, Grant, Verdict, judge
from .sampler import PRIVACY, NothingLeft, SuffixSampler, running_jobs
from .storage import (
    CLAIM,
    KILLED,
    alone,
    claimed,
    fail_orphans,
    finished,
    owner,
    spoken,
    whereabouts,
)

ATTACK_VERSION = 4  # raise when an attacker's code changes what it can reach
SECOND_FOR = "second_for"  # attribute of a second try: the key of the try that failed before it
_CUTS_KEPT = 2  # of how many cuts fitted attackers stay, for those that are built on them


@dataclass
class Outcome:
    """All evidence of a search and what it cost."""

    evidence: dict[Job, Evidence] = field(default_factory=dict)
    attacks: dict[Job, Attack] = field(default_factory=dict)
    unplaced: dict[int, str] = field(default_factory=dict)
    run: int = 0
    reused: int = 0
    image_steps: int = 0
    seconds: float = 0.0
    study: str = ""


class Search:
    """One search over the cuts of one model.

    A subclass that does not certify has trials that are never feasible.

    Args:
        cuts: In execution order.
        latencies: Of the same cuts; none where nothing hangs on them.
        store: Their features.
        panel: Attackers by name, with their settings.
        floor: SSIM of the blind attacker per test image.
        threshold: Scores at or above it leak.
        scale: ``corrected`` or ``raw``.
        interval: Whether the interval counts, or the mean alone, as in the published rule.
        resolution: Side at which images are rebuilt, in pixels.
        storage: Where trials are kept.
        seed: For everything random.
        device: Where attackers train.
        exhaustive: Run every attacker on every cut at full budget, for comparison.
        first: Name of a cut and of an attacker to begin with; a leak proven there ends the search,
            and without one it goes on at least as far as that cut.
        attack: False runs nothing: only what the storage has is evidence.
        whole: Time of the whole model in the enclave; None where comparing with it is void.
        on_progress: Called with what is being done and the share of that job.
        on_done: Called after each attack with its cut and result.
    """

    purpose = "search"
    certifies = True

    def __init__(
        self,
        cuts: Sequence[Cut],
        latencies: Sequence[CutLatency],
        store: FeatureStore,
        panel: Mapping[str, Attacker],
        floor: np.ndarray,
        *,
        threshold: float,
        scale: str,
        resolution: int,
        storage: BaseStorage,
        interval: bool = True,
        seed: int = 0,
        device: str = "cpu",
        exhaustive: bool = False,
        first: tuple[str, str] | None = None,
        attack: bool = True,
        whole: Duration | None = None,
        on_progress: Callable[[str, float], None] | None = None,
        on_done: Callable[[Cut, Attack, bool], None] | None = None,
    ) -> None:
        self.cuts = list(cuts)
        self.latencies = list(latencies)
        self.candidates = Candidates(self.cuts, self.latencies, whole)
        self.grant = Grant()  # what a cut that passes the rule may be called
        self.promoted: frozenset[int] = frozenset()  # nodes of cuts that are never the answer
        self.store = store
        self.panel = dict(panel)
        self.floor = floor
        self.threshold = threshold
        self.scale = scale
        self.interval = interval
        self.storage = storage
        self.seed = seed
        self.device = device
        self.exhaustive = exhaustive
        self.attacking = attack
        self.on_progress = on_progress
        self.on_done = on_done
        self.names = [c.name for c in self.cuts]
        self.pictures = at_resolution(store.images.images, resolution)
        self.resolution = resolution
        self.plan = Plan(
            self.names,
            {n: a.rank for n, a in self.panel.items()},
            threshold,
            self._could_win,
            first=(self.names.index(first[0]), first[1]) if first else None,
        )
        self.on_tuned: Callable[[Cut, str, Score], None] | None = None
        self.outcome = Outcome()
        self._safer: dict[Job, Attacker] = {}
        self._keys = {
            self.key(cut, attacker): (i, name)
            for i, cut in enumerate(self.cuts)
            for name, attacker in self.panel.items()
        }
        self._at_work: tuple[dict[Job, int], set[Job]] = {}, set()
        self._fitted: dict[int, dict[str, Fitted]] = {}
        self._lock = threading.RLock()
        self._cancelled = threading.Event()

    def key(self, cut: Cut, attacker: Attacker) -> str:
        """Content hash of everything an attack's result depends on."""
        return attack_key(
            self.store.key, cut, repr(attacker), plugin_source(attacker), self.resolution, self.seed
        )

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
                [self.key(cut, a) for cut in self.cuts for a in self.panel.values()],
                self.exhaustive,
                self.purpose,
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
                seconds[self.key(self.cuts[job[0]], safer)] = (job, key)
        found = finished(self.storage, [*missing, *seconds])
        for key, job in missing.items():
            if key in found:
                self._take_up(job, found[key].user_attrs, second=False)
        for key, (job, first) in seconds.items():
            known = job in self.outcome.evidence
            if not known and key in found and found[key].user_attrs.get(SECOND_FOR) == first:
                self._take_up(job, found[key].user_attrs, second=True)

    def _take_up(self, job: Job, attrs: dict[str, Any], second: bool) -> None:
        per_image = _per_image(attrs, len(self.floor))
        if per_image is None:
            return  # not what a search writes: run it
        result = self.score_of(job, per_image)
        if not attrs["complete"] and result.low < self.threshold:
            return  # it stopped at a proof for a lower threshold: run it in full
        attack = _attack_from(attrs, self.panel[job[1]], result, second)
        self.record(job, attack, attrs["unplaced"])
        self.outcome.reused += 1

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
        if not self.attacking:
            return None
        if not self.exhaustive:
            return self.plan.next(self.outcome.evidence, running)
        return self._next_of_all(running)

    def _next_of_all(self, running: Collection[Job]) -> Job | None:
        # Cut by cut: an attacker then finds fitted what it is built on.
        for i in reversed(range(len(self.cuts))):
            for attacker in self.plan.panel:
                job = (i, attacker)
                if job not in self.outcome.evidence and job not in running:
                    return job
        return None

    def _could_win(self, safe: Sequence[int], candidate: int) -> bool:
        if self.plan.first is not None and self.plan.first[0] == candidate:
            return True  # its verdict was asked for
        verdicts = self.verdicts()
        leaks = {i: verdicts[i].suffix_high for i in safe}
        return self.candidates.could_win(safe, candidate, leaks)

    def answer(self) -> int | None:
        """Index of the cut to use on the evidence so far, or None where none is safe."""
        verdicts = self.verdicts()
        safe = [
            i for i, v in enumerate(verdicts) if v.safe and self.cuts[i].node not in self.promoted
        ]
        return choose(self.candidates, safe, {i: verdicts[i].suffix_high for i in safe})

    def verdicts(self) -> list[Verdict]:
        """The rule applied to the evidence so far, by cut."""
        with self._lock:
            return judge(
                self.names,
                self.plan.panel,
                self.outcome.evidence,
                self.threshold,
                self.grant,
                self.unplaced(),
            )

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
            CLAIM: self.key(self.cuts[int(cut)], self.panel[name]),
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
        if theirs and self.on_progress is not None:
            (i, name), pid = next(iter(theirs.items()))
            self.on_progress(f"waiting for process {pid}: {name} on {self.names[i]}", 0.0)
        self._cancelled.wait(seconds)

    def _one(self, study: optuna.Study, trial: Trial, job: Job) -> None:
        """Run one attack and store it, whatever becomes of it."""
        cut = self.cuts[job[0]]
        again = self._safer.get(job)
        attacker = copy.deepcopy(again or self.panel[job[1]])
        start = time.monotonic()
        context = self.context(job)
        try:
            per_image = self.attack(job, cut, attacker, context)
        except StorageError:
            self._leave(study, trial)
            raise
        except (PartoptError, RuntimeError, MemoryError, ValueError) as error:
            note = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            with suppress(UpdateFinishedTrialError):
                trial.set_user_attr("note", note)
                study.tell(trial, state=TrialState.FAIL)
            if again is None and self._try_again(job):
                return
            failed = Attack(
                attacker=job[1], settings=repr(attacker), outcome="failed", note=note,
                image_steps=context.image_steps, seconds=time.monotonic() - start,
            )  # fmt: skip
            self.record(job, failed)
            self._count(context, failed.seconds)
            self._tell(cut, failed)
            return
        except BaseException:
            self._leave(study, trial)
            raise
        seconds = time.monotonic() - start
        self._count(context, seconds)
        steps, seconds = context.cost(seconds)
        per_image = per_image.round(6)  # what is stored is what is judged
        result = self.score_of(job, per_image)
        key = self.key(cut, attacker)
        attributes = {
            "key": key,
            "cut_name": cut.name,
            "cut_index": job[0],
            "score": result.value,
            "score_high": result.high,
            "ssim_raw": result.raw,
            "ssim_per_image": per_image.tolist(),
            "complete": not context.stopped_early,
            "settings": repr(attacker),
            "image_steps": steps,
            "seconds": round(seconds, 3),
            "note": remark(attacker),
            "unplaced": self.store.unplaced(cut),
        }
        if again is not None:
            attributes[SECOND_FOR] = self.key(cut, self.panel[job[1]])
        attack = _attack_from(attributes, self.panel[job[1]], result, again is not None)
        try:
            for name, value in attributes.items():
                trial.set_user_attr(name, value)
            self.keep_pictures(trial, job, attacker, key)
            self.record(job, attack, str(attributes["unplaced"]))
            verdict = self.verdicts()[job[0]]
            margin = verdict.suffix_high - self.threshold
            trial.set_constraint(PRIVACY, margin if verdict.safe and self.certifies else 1.0)
            study.tell(trial, self.latencies[job[0]].total.ms if self.latencies else 0.0)
        except UpdateFinishedTrialError:
            # Only from a machine that shares the storage and took this process for dead.
            notice(f"another run took over {job[1]} on {cut.name}: the result is not stored")
            self.record(job, attack, str(attributes["unplaced"]))
        except BaseException:
            self._leave(study, trial)
            raise
        self._tell(cut, attack)

    def _leave(self, study: optuna.Study, trial: Trial) -> None:
        """Stop, and leave the trial to whoever comes next, as far as the storage still lets us."""
        self._cancelled.set()
        with suppress(Exception):
            study.tell(trial, state=TrialState.FAIL)

    def context(self, job: Job) -> Context:
        """What the attacker of a job is given, those already fitted at that cut among it.

        All attackers of a cut have one seed: a member that is taken as fitted is what fitting it
        again would give.
        """
        with self._lock:
            fitted = self._fitted.setdefault(job[0], {})
            for old in list(self._fitted)[:-_CUTS_KEPT]:
                del self._fitted[old]
        seed = derive_seed(self.seed, self.names[job[0]])
        return Context(seed=seed, device=self.device, fitted=fitted)

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

    def attack(
        self, job: Job, cut: Cut, attacker: Attacker, context: Context, *, to_the_end: bool = False
    ) -> np.ndarray:
        """Fit, then score on the test images; SSIM per image, shape (N,).

        Training stops at proof of a leak, unless it is to go on `to_the_end`.
        """
        what = f"{job[1]} on {cut.name}"
        pairs = pairs_of(self.store, cut, attacker, self.pictures, self._likely_next(job[0]))

        def proven(reconstruct: Reconstruct, validation: float) -> bool:
            self._stop_if_cancelled()
            hint = validation
            if self.scale == "corrected":
                hint = float(corrected(validation, self.floor.mean()))
            if self.exhaustive or to_the_end or hint < self.threshold:
                return False
            found = self.score_of(job, ssim_of(reconstruct, pairs.test, pairs.originals))
            return found.low >= self.threshold

        def progress(share: float) -> None:
            self._stop_if_cancelled()
            if self.on_progress is not None:
                self.on_progress(what, share)

        context.proven, context.progress = proven, progress
        arm(context, self.store, cut, attacker)
        key, start = repr(attacker), time.monotonic()
        progress(0.0)
        attacker.fit(
            pairs.train,
            pairs.targets,
            validation=(pairs.held_out, pairs.held_out_pictures),
            context=context,
        )
        # What `--tune` tries is in nobody else's settings.
        if not context.stopped_early and not to_the_end:
            context.keep(key, attacker, time.monotonic() - start)
        return ssim_of(attacker.reconstruct, pairs.test, pairs.originals)

    def keep_pictures(self, trial: Trial, job: Job, attacker: Attacker, key: str) -> None:
        """Reconstructions beside originals, for reports and as an artifact of the trial."""
        start, _ = self.store.images.bounds("test")
        few = range(min(pictures.SHOWN, self.store.images.split.test))
        maps = self.store.rows(self.cuts[job[0]], "test").take(few)
        with torch.no_grad():
            rebuilt = attacker.reconstruct(maps)
        path = pictures.save(key, self.pictures[start : start + len(few)], rebuilt)
        folder = cache_dir("artifacts")
        with written_to(folder):
            artifacts = FileSystemArtifactStore(str(folder))
            upload_artifact(artifact_store=artifacts, file_path=str(path), study_or_trial=trial)

    def _stop_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise KeyboardInterrupt

    def _likely_next(self, index: int) -> list[Cut]:
        """Cuts whose features the same pass should make: those not yet proven to leak."""
        verdicts = self.verdicts()
        order = [*reversed(range(index + 1)), *range(index + 1, len(self.cuts))]
        return [
            self.cuts[i]
            for i in order
            if self.exhaustive or verdicts[i].suffix_low < self.threshold
        ]

    def score_of(self, job: Job, per_image: np.ndarray) -> Score:
        """The score of SSIM per test image, on the run's scale."""
        seed = derive_seed(self.seed, "bootstrap")
        return score(per_image, self.floor, scale=self.scale, seed=seed)

    def record(self, job: Job, attack: Attack, unplaced: str = "") -> None:
        """Take an attack up as the evidence of its job; `unplaced` as in `FeatureStore`."""
        with self._lock:
            if unplaced:
                self.outcome.unplaced[job[0]] = unplaced
            self.outcome.evidence[job] = Evidence.of(attack, self.scale, self.interval)
            self.outcome.attacks[job] = attack

    def _count(self, context: Context, seconds: float) -> None:
        with self._lock:
            self.outcome.run += 1
            self.outcome.image_steps += context.image_steps
            self.outcome.seconds += seconds

    def _tell(self, cut: Cut, attack: Attack) -> None:
        if self.on_done is not None:
            floor = attack.low if self.interval else attack.score
            self.on_done(cut, attack, floor is not None and floor >= self.threshold)


def attack_key(
    features: str, cut: Cut, settings: str, plugins: str, resolution: int, seed: int
) -> str:
    """Content hash of everything an attack's result depends on.

    Args:
        features: Key of the features: network, preprocessing, images and the code between them.
        cut: The cut attacked.
        settings: `repr` of the attacker that ran, before it was fitted.
        plugins: Digest of the source of attackers that other packages brought.
        resolution: Side at which images are rebuilt, in pixels.
        seed: Of the run.
    """
    boundary = [spec.name for spec in cut.boundary]
    source = [ATTACK_VERSION, attack_source(), plugins]
    return hash_json([*source, features, boundary, settings, resolution, seed])


def plugin_source(attacker: Attacker) -> str:
    """Digest of the files of every class in `attacker` that is none of ours; empty without one."""
    kind = type(attacker)
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    ours = kind.__module__.startswith(f"{__package__.partition('.')[0]}.")
    own = [] if ours else [kind.__qualname__, file_digest(file) if file else ""]
    inner = [plugin_source(v) for v in attacker.settings().values() if isinstance(v, Attacker)]
    parts = [*own, *filter(None, inner)]
    return hash_json(parts) if parts else ""


def _note(said: str, second: bool) -> str:
    again = "the first try failed or was killed; this is the second, with safer settings"
    return "; ".join(filter(None, [again if second else "", said]))


def _per_image(attrs: Mapping[str, Any], count: int) -> np.ndarray | None:
    """SSIM per test image of a stored result, or None where the result is not whole."""
    wanted: dict[str, type | tuple[type, ...]] = {
        "ssim_per_image": list, "complete": bool, "settings": str, "key": str, "note": str,
        "unplaced": str,
        "image_steps": int, "seconds": (int, float),
    }  # fmt: skip
    if not all(isinstance(attrs.get(n), kind) for n, kind in wanted.items()):
        return None
    try:
        values = np.asarray(attrs["ssim_per_image"], float)
    except (TypeError, ValueError):
        return None
    fits = values.shape == (count,) and np.isfinite(values).all() and (np.abs(values) <= 1).all()
    return values if fits else None


def _attack_from(
    attrs: Mapping[str, Any], attacker: Attacker, result: Score, second: bool
) -> Attack:
    return Attack(
        attacker=attacker.name,
        settings=attrs["settings"],
        outcome="full budget" if attrs["complete"] else "stopped at proof",
        key=attrs["key"],
        ssim_raw=result.raw,
        ssim_p95=result.p95,
        ssim_max=result.largest,
        score=result.value,
        low=result.low,
        high=result.high,
        image_steps=attrs["image_steps"],
        seconds=attrs["seconds"],
        note=_note(attrs["note"], second),
    )
