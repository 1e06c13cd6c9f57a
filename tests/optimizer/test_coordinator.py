from __future__ import annotations

import optuna
import pytest
from .fleet_of import PANEL, Small, at_work, statuses, told
from optuna.trial import TrialState

from partopt.optimizer.board import JOB


@pytest.fixture
def small():
    return Small()


def trials_of(search):
    return optuna.load_study(study_name=search.outcome.study, storage=search.storage).trials


def test_a_fleet_gives_the_evidence_of_one_process(small):
    alone = small.search(optuna.storages.InMemoryStorage())
    alone.run()
    storage = optuna.storages.InMemoryStorage()
    search = small.search(storage, small.fleet())
    with at_work(small.worker(storage), small.worker(storage)):
        search.run(0)
    assert told(search) == told(alone)
    assert list(search.outcome.attacks) == list(alone.outcome.attacks), "in the same order"
    assert statuses(search) == statuses(alone)
    assert (search.outcome.run, search.outcome.reused) == (alone.outcome.run, 0)
    trials = trials_of(search)
    assert all(t.state.is_finished() for t in trials)
    done = [t.user_attrs["key"] for t in trials if t.state == TrialState.COMPLETE]
    assert len(done) == len(set(done)), "nothing twice"
    assert all(t.constraints == {"privacy": 1.0} for t in trials), "a worker cannot judge"
    assert all(isinstance(t.user_attrs[JOB], dict) for t in trials if JOB in t.user_attrs)
    assert PANEL
