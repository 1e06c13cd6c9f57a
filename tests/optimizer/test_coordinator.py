from __future__ import annotations

import threading
import time

import optuna
import pytest
from optuna.trial import TrialState

from partopt.attackers import panel as registry
from partopt.attackers.decoder import Decoder
from partopt.attackers.linear import Linear
from partopt.errors import AttackError
from partopt.optimizer import coordinator
from partopt.optimizer.board import JOB, LOST, RETURNED, SEAT, open_studies
from partopt.optimizer.coordinator import Pace
from partopt.optimizer.leases import LEASE, lease
from partopt.optimizer.search import Listener
from partopt.optimizer.storage import open_storage, owner

from .fleet_of import PANEL, at_work, statuses, told

LINEAR = {"linear": PANEL["linear"]}
QUICK = Pace(patience=0.6, poll=0.01)
DEAD = {**owner(), "pid": 2**22 - 1, "start": "1"}


pytestmark = pytest.mark.usefixtures("one_cache")


def memory():
    return optuna.storages.InMemoryStorage()


def trials_of(search):
    return optuna.load_study(study_name=search.outcome.study, storage=search.storage).trials


def in_order(search):
    """Nothing waits or runs, and no attack has two results."""
    trials = trials_of(search)
    assert all(t.state.is_finished() for t in trials)
    done = [t.user_attrs["key"] for t in trials if t.state == TrialState.COMPLETE]
    assert len(done) == len(set(done))
    assert open_studies(search.storage) == []
    return trials


def test_a_fleet_gives_the_evidence_of_one_process(small):
    alone = small.search(memory())
    alone.run()
    said = []
    search = small.search(memory(), small.fleet())
    search.listener = Listener(on_progress=lambda what, share: said.append((what, share)))
    with at_work(small.worker(search.storage), small.worker(search.storage)):
        search.run(0)
    assert told(search) == told(alone)
    assert list(search.outcome.attacks) == list(alone.outcome.attacks), "in the same order"
    assert statuses(search) == statuses(alone)
    assert (search.outcome.run, search.outcome.reused) == (alone.outcome.run, 0)
    trials = in_order(search)
    assert all(t.constraints == {"privacy": 1.0} for t in trials), "a worker cannot judge"
    made = [t for t in trials if t.state == TrialState.COMPLETE]
    assert all({"threads", "device", "owner", LEASE} <= t.user_attrs.keys() for t in made)
    assert {t.user_attrs["threads"] for t in made} == {1}
    assert any("2 workers: " in what and "at most" in what for what, _ in said)
    assert all(0 <= share <= 1 for _, share in said)


def test_what_was_made_ahead_waits_until_the_plan_asks_for_it(small):
    """Many workers attack cuts that one process would never have come to."""
    alone = small.search(memory(), threshold=0.9)
    alone.run()
    every = small.search(memory(), exhaustive=True, threshold=0.9)
    every.run()
    storage = every.storage
    search = small.search(storage, small.fleet(), threshold=0.9)
    search.run(0)  # everything is there: no worker is needed
    assert told(search) == told(alone)
    assert (search.outcome.run, search.outcome.reused) == (0, alone.outcome.run)
    assert len(every.outcome.attacks) > len(alone.outcome.attacks)


class FirstBroken(Decoder):
    name = "broken"

    def fit(self, *args, **kwargs):
        if self.lr >= 2e-3:
            raise AttackError("diverged: nan")
        super().fit(*args, **kwargs)


class Broken(Linear):
    name = "hopeless"

    def fit(self, *args, **kwargs):
        raise AttackError("diverged: inf")


def test_failures_are_tried_again_as_one_process_does(small, monkeypatch):
    monkeypatch.setitem(registry.ATTACKERS, "broken", FirstBroken)
    monkeypatch.setitem(registry.ATTACKERS, "hopeless", Broken)
    panel = {"broken": PANEL["decoder"], "hopeless": LINEAR["linear"]}
    over, found = small.cuts[-2:], []
    for fleet in (None, small.fleet()):
        search = small.search(memory(), fleet, panel, over, exhaustive=True)
        with at_work(*([small.worker(search.storage)] if fleet else [])):
            search.run(0 if fleet else 1)
        found.append(search)
    alone, search = found
    assert told(search) == told(alone)
    assert statuses(search) == statuses(alone)
    attacks = search.outcome.attacks
    assert all("safer settings" in attacks[i, "broken"].note for i in range(2))
    assert [attacks[i, "hopeless"].note for i in range(2)] == ["diverged: inf"] * 2
    in_order(search)


def thief(storage, wanted, who=DEAD):
    """Takes jobs that `wanted` says, and is never heard of again."""
    stolen, over = [], threading.Event()

    def run():
        while not over.wait(0.005):
            for study in open_studies(storage):
                for trial in storage.get_all_trials(study._study_id, deepcopy=False):
                    waits = trial.state == TrialState.WAITING and JOB in trial.user_attrs
                    if waits and wanted(trial.user_attrs, stolen):
                        storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
                        if who is not None:
                            storage.set_trial_user_attr(trial._trial_id, LEASE, lease(0))
                            storage.set_trial_user_attr(trial._trial_id, "owner", who)
                        stolen.append(trial.user_attrs["cut_name"])

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return stolen, over


def robbed(small, wanted, who=DEAD):
    """A search some of whose jobs a thief takes."""
    search = small.search(memory(), small.fleet(QUICK), LINEAR, small.cuts[-3:], exhaustive=True)
    stolen, over = thief(search.storage, wanted, who)
    worker = small.worker(search.storage)
    take = worker._ours
    # What the thief is to have, the worker leaves to it.
    worker._ours = lambda place, trial: (
        None if wanted(trial.user_attrs, stolen) else take(place, trial)
    )
    with at_work(worker):
        search.run(0)
    over.set()
    return search, stolen


@pytest.mark.parametrize("who", [DEAD, {**owner(), "host": "another"}, None])
def test_what_a_lost_worker_was_at_is_made_once_more(small, who):
    """Killed on this machine, silent on another one, or dead before it signed."""
    last = small.cuts[-1].name
    search, stolen = robbed(small, lambda job, stolen: job["cut_name"] == last and not stolen, who)
    assert stolen == [last]
    assert all(a.outcome == "full budget" for a in search.outcome.attacks.values())
    lost = [t for t in in_order(search) if LOST in t.user_attrs]
    assert [t.user_attrs["cut_name"] for t in lost] == [last]


def test_an_attack_that_fells_its_worker_twice_counts_as_leaking(small, monkeypatch):
    said = []
    monkeypatch.setattr(coordinator, "notice", said.append)
    last = small.cuts[-1].name
    search, stolen = robbed(small, lambda job, stolen: job["cut_name"] == last)
    assert stolen == [last] * 2, "tried again once"
    attack = search.outcome.attacks[2, "linear"]
    assert attack.outcome == "failed"
    assert "2 workers were lost at it" in attack.note
    assert statuses(search)[2] == "failed"
    assert any(f"linear on {last} was given up, and counts as leaking" in s for s in said)
    assert all(search.outcome.attacks[i, "linear"].outcome == "full budget" for i in range(2))
    in_order(search)
    # The end was in order: the next run begins with a clean slate.
    again = small.search(
        search.storage, small.fleet(QUICK), LINEAR, small.cuts[-3:], exhaustive=True
    )
    with at_work(small.worker(search.storage)):
        again.run(0)
    assert again.outcome.attacks[2, "linear"].outcome == "full budget"
    assert (again.outcome.run, again.outcome.reused) == (1, 2)


def test_where_workers_are_lost_everywhere_no_attack_is_the_reason(small):
    names = [c.name for c in small.cuts[-3:]]

    def wanted(job, stolen):
        name = job["cut_name"]
        return stolen.count(name) < (3 if name == names[2] else 1)

    search, stolen = robbed(small, wanted)
    assert sorted(stolen) == sorted([names[2]] * 3 + names[:2])
    assert all(a.outcome == "full budget" for a in search.outcome.attacks.values())


def test_a_second_coordinator_waits_and_takes_what_the_first_had_made(small, tmp_path):
    storage = open_storage(str(tmp_path / "s.journal"))[0]
    searches, said = [], []
    for _ in range(2):
        search = small.search(storage, small.fleet(), LINEAR, small.cuts[-3:], exhaustive=True)
        search.listener = Listener(on_progress=lambda what, share: said.append(what))
        searches.append(search)
    threads = [threading.Thread(target=s.run, args=(0,)) for s in searches]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    with at_work(small.worker(storage)):
        for thread in threads:
            thread.join(60)
    assert any(what.startswith("waiting for the run that coordinates") for what in said)
    assert told(searches[0]) == told(searches[1])
    assert sorted(s.outcome.run for s in searches) == [0, 3]
    in_order(searches[0])


def test_a_run_that_was_interrupted_goes_on_and_makes_nothing_twice(small):
    storage, done = memory(), []

    def stop(cut, attack, leaks):
        done.append(cut)
        if len(done) == 2:
            raise KeyboardInterrupt

    search = small.search(storage, small.fleet(), LINEAR, exhaustive=True)
    search.listener = Listener(on_done=stop)
    with at_work(small.worker(storage)), pytest.raises(KeyboardInterrupt):
        search.run(0)
    waiting = [t for t in trials_of(search) if t.state == TrialState.WAITING]
    assert not waiting, "nobody would ever ask for it"
    again = small.search(storage, small.fleet(), LINEAR, exhaustive=True)
    with at_work(small.worker(storage)):
        again.run(0)
    assert len(again.outcome.attacks) == len(small.cuts)
    assert again.outcome.reused >= 2
    in_order(again)


def test_a_worker_that_is_told_to_stop_gives_its_job_back(small):
    search = small.search(memory(), small.fleet(), LINEAR, small.cuts[-2:], exhaustive=True)
    first, second = small.worker(search.storage), small.worker(search.storage)
    told = threading.Event()

    def stop(what, share):
        first.stop()
        told.set()

    def after():
        told.wait(60)  # else it may do everything before the first has a job
        return work()

    first.on_progress, work, second.run = stop, second.run, after
    with at_work(first, second):
        search.run(0)
    assert first.done == 0
    trials = in_order(search)
    assert [t for t in trials if RETURNED in t.user_attrs]
    assert not [t for t in trials if LOST in t.user_attrs], "nor does it count as lost"
    assert all(a.outcome == "full budget" for a in search.outcome.attacks.values())


def test_a_study_keeps_the_threads_that_it_was_begun_with(small):
    storage = memory()
    for threads in (1, 2):
        fleet = small.fleet()
        fleet.threads = threads
        search = small.search(storage, fleet, LINEAR, small.cuts[-2:], exhaustive=True)
        study = search._study()
        course = coordinator._Coursing(fleet, search, study)
        with course.opened():
            assert course.threads == 1


def test_seats_are_no_attacks(small):
    search = small.search(memory(), small.fleet(), LINEAR, small.cuts[-1:], exhaustive=True)
    with at_work(small.worker(search.storage)):
        search.run(0)
    seats = [t for t in in_order(search) if SEAT in t.user_attrs]
    assert [t.state for t in seats] == [TrialState.PRUNED]
