"""An Optuna sampler that walks the plan: one trial is one attacker on one cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from .plan import Job

PRIVACY = "privacy"


class NothingLeft(Exception):
    """The plan has no further job."""


class SuffixSampler(BaseSampler):
    """Suggests ``cut`` (index in execution order) and ``attacker`` by asking `decide`.

    In Optuna 5 a trial without a constraint counts as feasible. `after_trial` therefore gives every
    trial that ends without one the constraint ``privacy`` = 1, which is infeasible: only a trial
    that completed the evidence for a safe cut may say otherwise.

    Args:
        cuts: How many cuts there are.
        attackers: Names, in panel order.
        decide: From the trials now running to the next job.
    """

    def __init__(
        self, cuts: int, attackers: Sequence[str], decide: Callable[[set[Job]], Job | None]
    ) -> None:
        self._space: dict[str, BaseDistribution] = {
            # Of a single value Optuna would not ask us, nor learn that nothing is left.
            "cut": IntDistribution(0, max(1, cuts - 1)),
            "attacker": CategoricalDistribution(list(attackers)),
        }
        self._decide = decide

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Both parameters are always sampled together."""
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The plan's next job, given what other workers are at."""
        job = self._decide(running_jobs(study, besides=trial.number))
        return {} if job is None else {"cut": job[0], "attacker": job[1]}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Only reached when the plan had no job."""
        raise NothingLeft

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Make a trial without a verdict infeasible."""
        if PRIVACY not in trial.constraints:
            key = f"constraints:{PRIVACY}"
            study._storage.set_trial_system_attr(trial._trial_id, key, 1.0)


def running_jobs(study: Study, besides: int = -1) -> set[Job]:
    """Jobs of trials that are running now."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return {
        (int(t.params["cut"]), str(t.params["attacker"]))
        for t in trials
        if t.number != besides and {"cut", "attacker"} <= t.params.keys()
    }


optuna.logging.set_verbosity(optuna.logging.WARNING)
