"""Look for stronger settings of the attackers where it matters: at the cut returned and before it.

An Optuna study (tree-structured Parzen estimator; Bergstra et al., NeurIPS 2011) *maximises* an
attacker's SSIM. Settings are compared on validation images; what the best of them reaches on the
test images is evidence like any other, and a cut that it breaks is not returned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from ..attackers.base import Attacker, Range
from ..errors import StorageError, first_line
from ..hashing import derive_seed, hash_json
from .attempt import FAILURES, Failed
from .keys import ATTACK_VERSION
from .plan import Job
from .search import Search
from .storage import alone, fail_orphans, owner, spoken
from .stored import TUNED, StoredAttack

Tell = Callable[[str, int], None]


def tune(search: Search, trials: int, tell: Tell = lambda text, jobs: None) -> list[str]:
    """Tune every attacker that can be at the boundary, until the cut returned has been tuned.

    Evidence of `search` becomes that of the stronger settings. A cut that they break is no longer
    safe; the next one takes its place and is tuned in its turn.

    Args:
        search: A search that has run.
        trials: Settings tried for each attacker at each cut, those of its budget first.
        tell: Called with what is being done and how many trials that takes, at most.

    Returns:
        What the result must say: attackers that cannot be tuned, trials that all failed.
    """
    names = [n for n, a in search.panel.items() if a.tunable]
    left = [n for n in search.panel if n not in names]
    said = [f"tuning left {', '.join(left)} as they were: no settings to look for"] if left else []
    tuned: set[int] = set()
    while (pick := search.answer()) is not None and pick not in tuned:
        # The cut before first: what inverts it best is a good guess for the cut returned.
        cuts = [i for i in (pick - 1, pick) if i >= 0 and i not in tuned]
        tell(
            f"tuning {', '.join(names) or 'nothing'} at {search.names[pick]}",
            trials * len(cuts) * len(names),
        )
        for name in names:
            first: dict[str, Any] = {}
            for i in cuts:
                best = _tune_one(search, (i, name), trials, first)
                if best is None:
                    said.append(f"no tuned {name} at {search.names[i]} succeeded")
                else:
                    first = best
        tuned.update(cuts)
    return said


def _tune_one(
    search: Search, job: Job, trials: int, first: dict[str, Any]
) -> dict[str, Any] | None:
    """Run what is missing of one study and take up its best; return the best settings.

    One process at a time: the sampler's next setting depends on all before, and so does the answer.
    """

    def waiting() -> None:
        what = f"{job[1]} on {search.names[job[0]]}"
        search.listener.on_progress(f"waiting for another run that tunes {what}", 0.0)

    key = search.key(search.cuts[job[0]], search.panel[job[1]])
    with spoken(search.storage), alone(search.storage, f"tuning {key}", waiting):
        return _tune_alone(search, job, trials, first)


def _tune_alone(
    search: Search, job: Job, trials: int, first: dict[str, Any]
) -> dict[str, Any] | None:
    base = search.panel[job[1]]
    study = _study(search, job, base)
    fail_orphans(study)
    if not study.get_trials(deepcopy=False):
        for known in ({n: getattr(base, n) for n in base.tunable}, first):
            if known and _inside(known, base):
                study.enqueue_trial(known, skip_if_exists=True)
    ended = (TrialState.COMPLETE, TrialState.FAIL)
    while (done := len(study.get_trials(deepcopy=False, states=ended))) < trials:
        _try(search, study, job, base, done, trials)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return None
    best = max(complete, key=lambda t: t.values[0])
    _take_up(search, job, best, len(complete))
    return dict(best.params)


def _study(search: Search, job: Job, base: Attacker) -> optuna.Study:
    key = hash_json([ATTACK_VERSION, search.key(search.cuts[job[0]], base)])
    seed = derive_seed(search.bench.seed, "tune", search.names[job[0]], job[1]) % 2**32
    return optuna.create_study(
        storage=search.storage,
        study_name=f"partopt-tune-{key[:16]}",
        sampler=TPESampler(seed=seed, n_startup_trials=4),
        direction="maximize",
        load_if_exists=True,
    )


def _inside(settings: dict[str, Any], base: Attacker) -> bool:
    """Whether settings lie where the study looks."""

    def fits(name: str, where: Range | tuple[Any, ...]) -> bool:
        value = settings.get(name)
        if isinstance(where, Range):
            return value is not None and where.low <= value <= where.high
        return value in where

    return all(fits(n, where) for n, where in base.tunable.items())


def _suggested(trial: Trial, base: Attacker) -> Attacker:
    chosen: dict[str, Any] = {}
    for name, where in base.tunable.items():
        if isinstance(where, Range):
            chosen[name] = trial.suggest_float(name, where.low, where.high, log=True)
        else:
            chosen[name] = trial.suggest_categorical(name, list(where))
    return replace(base, **chosen)  # type: ignore[type-var]


def _try(
    search: Search, study: optuna.Study, job: Job, base: Attacker, done: int, trials: int
) -> None:
    """One setting: fit on training images, compare on validation images, score on test images."""
    cut = search.cuts[job[0]]
    trial = study.ask()
    trial.set_user_attr("owner", owner())
    attacker = _suggested(trial, base)
    try:
        reached = search.attack(job, attacker, to_the_end=True)
        held_out = reached.held_out()
    except (Failed, *FAILURES) as error:
        if isinstance(error, StorageError):
            raise
        trial.set_user_attr("note", first_line(error))
        study.tell(trial, state=TrialState.FAIL)
        return
    except BaseException:
        study.tell(trial, state=TrialState.FAIL)
        raise
    key = search.key(cut, attacker)
    for name, value in StoredAttack.of(reached, key).to_attrs(TUNED).items():
        trial.set_user_attr(name, value)
    search.keep_pictures(trial, reached, key)
    study.tell(trial, held_out)
    search.outcome.run += 1
    search.outcome.image_steps += reached.own_steps
    search.outcome.seconds += reached.own_seconds
    search.listener.on_tuned(cut, f"{job[1]}, setting {done + 1} of {trials},", reached.score)


def _take_up(search: Search, job: Job, best: FrozenTrial, count: int) -> None:
    """Make the tuned attack the evidence where it is the stronger one; never the weaker."""
    stored = StoredAttack.from_attrs(best.user_attrs, search.bench.floors, TUNED)
    if stored is None:
        return
    result = search.bench.score(stored.per_side).strict
    known = search.outcome.attacks.get(job)
    if known is not None:
        if known.high is None:
            return  # a failed attack goes on counting as leaking
        complete = known.outcome == "full budget"
        if (known.high, known.score or 0.0) >= (result.high, result.value) and complete:
            return
        if not complete and (known.low or 0.0) >= result.low:
            return  # it was stopped because the leak was proven
    said = f"tuned: best of {count} settings on validation images"
    search.record(job, stored.shown(job[1], search.bench, search.course.threshold, said), stored)
