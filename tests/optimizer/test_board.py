import threading

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from partopt.optimizer.board import ENDED, LOST, OPEN, SEAT, end, last_end, open_studies, take
from partopt.optimizer.seats import seated
from partopt.optimizer.storage import open_storage, owner

DEAD = {**owner(), "pid": 2**22 - 1, "start": "1"}


@pytest.fixture(params=["memory", "journal", "postgres"])
def storage(request, tmp_path):
    if request.param == "memory":
        yield optuna.storages.InMemoryStorage()
    elif request.param == "journal":
        yield open_storage(str(tmp_path / "s.journal"))[0]
    else:
        found = open_storage(request.getfixturevalue("postgres")())[0]
        yield found
        found._backend.engine.dispose()


def test_of_all_who_try_one_gets_a_job(storage):
    study = optuna.create_study(storage=storage)
    for _ in range(5):
        storage.create_new_trial(study._study_id, create_trial(state=TrialState.WAITING))
    waiting = storage.get_all_trials(study._study_id, states=(TrialState.WAITING,))
    got, begin = [], threading.Barrier(4)

    def grab():
        begin.wait()
        got.extend(t.number for t in waiting if take(storage, t))

    threads = [threading.Thread(target=grab) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(5))
    assert not any(take(storage, t) for t in waiting)


def test_what_ended_is_neither_taken_nor_ended_again(storage):
    study = optuna.create_study(storage=storage)
    number = storage.create_new_trial(study._study_id, create_trial(state=TrialState.WAITING))
    trial = storage.get_trial(number)
    assert end(storage, number, LOST)
    assert not end(storage, number, LOST)
    assert not take(storage, trial)
    assert storage.get_trial(number).state == TrialState.FAIL


def test_workers_look_only_into_studies_that_want_them(storage):
    for name, value in (("a", "open"), ("b", "closed"), ("c", None)):
        study = optuna.create_study(storage=storage, study_name=name)
        if value:
            study.set_user_attr(OPEN, value)
    assert [s.study_name for s in open_studies(storage)] == ["a"]


def test_one_coordinator_at_a_time(storage):
    study = optuna.create_study(storage=storage, study_name="s")
    inside, most, waited = [], [], []

    def coordinate(number):
        mine = optuna.load_study(study_name="s", storage=storage)
        with seated(mine, 10.0, waited.append, pause=0.01):
            inside.append(number)
            most.append(len(inside))
            threading.Event().wait(0.05)
            inside.remove(number)

    threads = [threading.Thread(target=coordinate, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1, 1, 1]
    assert waited
    assert all(who["pid"] == owner()["pid"] for who in waited)
    assert [t.state for t in study.trials] == [TrialState.PRUNED] * 3


@pytest.mark.parametrize("state", [TrialState.WAITING, TrialState.RUNNING])
def test_a_dead_coordinator_keeps_nobody_out(storage, state):
    study = optuna.create_study(storage=storage)
    seat = create_trial(state=TrialState.WAITING, user_attrs={SEAT: True, "owner": DEAD})
    number = storage.create_new_trial(study._study_id, seat)
    if state == TrialState.RUNNING:
        storage.set_trial_state_values(number, state)
    with seated(study, 10.0, pause=0.01):
        assert storage.get_trial(number).state == TrialState.FAIL


def test_a_coordinator_that_falls_silent_is_told_that_it_lost_its_seat(storage):
    study = optuna.create_study(storage=storage)
    with seated(study, 0.24, pause=0.01) as first:
        seat = study.trials[0]
        # As another coordinator does that has not heard of us.
        storage.set_trial_state_values(seat._trial_id, TrialState.FAIL)
        assert first.lost.wait(5)


def test_failures_count_since_the_last_end_in_order(storage):
    study = optuna.create_study(storage=storage)
    assert last_end(study) == -1
    with pytest.raises(RuntimeError), seated(study, 10.0):
        raise RuntimeError
    assert last_end(study) == -1, "it goes on"
    with seated(study, 10.0):
        study.ask()
    assert last_end(study) == 2
    assert study.trials[1].user_attrs[ENDED] == 2
