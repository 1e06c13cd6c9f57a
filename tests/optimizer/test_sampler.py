"""What the sampler makes of trials that nobody judged."""

import optuna
import pytest
from optuna.trial import TrialState

from partopt.optimizer.sampler import PRIVACY, SuffixSampler


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
def test_a_trial_that_ends_without_a_verdict_is_infeasible(state):
    """Optuna takes a trial without a constraint for feasible, however fast the cut."""
    study = optuna.create_study(sampler=SuffixSampler(2, ["linear"], lambda running: (1, "linear")))
    judged, unjudged = study.ask(), study.ask()
    for trial in (judged, unjudged):
        trial.suggest_int("cut", 0, 1)
        trial.suggest_categorical("attacker", ["linear"])
    judged.set_constraint(PRIVACY, -0.1)
    study.tell(judged, 9.0)
    study.tell(unjudged, 1.0 if state == TrialState.COMPLETE else None, state=state)
    assert [t.constraints for t in study.trials] == [{PRIVACY: -0.1}, {PRIVACY: 1.0}]
    assert study.best_trial.number == judged.number
