import time

import optuna
from optuna.trial import TrialState

from partopt.optimizer import storage as storage_module
from partopt.optimizer.leases import LEASE, Renewed, Silence, lease
from partopt.optimizer.storage import KILLED, fail_orphans, open_storage, owner

PATIENCE = 60.0


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def running(mark):
    study = optuna.create_study()
    trial = study.ask()
    if mark is not None:
        trial.set_user_attr(LEASE, mark)
    return study, trial


def seen(study):
    return study.get_trials(deepcopy=False)[0]


def watched(silence, clock, study, seconds, step=5.0):
    found = False
    for _ in range(int(seconds / step)):
        clock.now += step
        found = silence.of(seen(study))
    return found


def test_who_renews_is_there_and_who_does_not_is_gone_after_the_patience():
    clock = Clock()
    silence = Silence(PATIENCE, clock)
    study, trial = running(lease(0))
    assert not silence.of(seen(study))
    assert not watched(silence, clock, study, 60)
    trial.set_user_attr(LEASE, lease(1))
    assert not watched(silence, clock, study, 60)
    assert watched(silence, clock, study, 10)


def test_a_trial_that_nobody_signed_is_given_the_same_patience():
    clock = Clock()
    silence = Silence(PATIENCE, clock)
    study, _ = running(None)
    assert not watched(silence, clock, study, 60)
    assert watched(silence, clock, study, 10)


def test_who_did_not_look_for_a_while_has_watched_nothing():
    """A coordinator that was suspended does not end everybody's jobs when it goes on."""
    clock = Clock()
    silence = Silence(PATIENCE, clock)
    study, _ = running(lease(0))
    watched(silence, clock, study, 30)
    clock.now += 3600
    assert not silence.of(seen(study))
    assert not watched(silence, clock, study, 60)
    assert watched(silence, clock, study, 10)


def test_a_lease_that_is_very_old_needs_no_watching():
    study, _ = running({"beat": 3, "at": time.time() - 20 * PATIENCE})
    assert Silence(PATIENCE).of(seen(study))
    study, _ = running({"beat": 3, "at": "nonsense"})
    assert not Silence(PATIENCE).of(seen(study))


def test_a_lease_is_renewed_until_the_block_ends_or_the_trial_is_taken():
    study, trial = running(lease(0))
    storage, number = study._storage, trial._trial_id
    with Renewed(storage, number, patience=0.12) as renewed:
        time.sleep(0.2)
        assert seen(study).user_attrs[LEASE]["beat"] >= 2
        assert not renewed.lost.is_set()
        study.tell(trial, state=TrialState.FAIL)
        assert renewed.lost.wait(5)
    count = seen(study).user_attrs[LEASE]["beat"]
    time.sleep(0.05)
    assert seen(study).user_attrs[LEASE]["beat"] == count


def test_an_unreachable_database_neither_ends_nor_stops_the_renewing():
    study, trial = running(lease(0))

    class Away:
        calls = 0

        def set_trial_user_attr(self, *args):
            self.calls += 1
            if self.calls < 3:
                raise ConnectionError
            study._storage.set_trial_user_attr(*args)

    with Renewed(Away(), trial._trial_id, patience=0.12) as renewed:
        time.sleep(0.2)
        assert not renewed.lost.is_set()
    assert seen(study).user_attrs[LEASE]["beat"] >= 3


def test_a_silent_process_of_another_machine_leaves_no_trial_running(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(storage_module, "_SILENCE", Silence(PATIENCE, clock))
    storage, _ = open_storage(str(tmp_path / "s.journal"))
    study = optuna.create_study(storage=storage)
    remote = {**owner(), "host": "another"}
    for mark in (lease(0), None):
        trial = study.ask()
        trial.set_user_attr("owner", remote)
        if mark is not None:
            trial.set_user_attr(LEASE, mark)
    ended = 0
    for _ in range(14):
        clock.now += 5.0
        ended += fail_orphans(study)
    first, old = study.trials
    assert (ended, first.state, old.state) == (1, TrialState.FAIL, TrialState.RUNNING)
    assert first.user_attrs[KILLED], "what it was at is tried more safely"
