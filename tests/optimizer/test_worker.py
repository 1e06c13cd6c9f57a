from __future__ import annotations

import threading
from dataclasses import replace

import optuna
import pytest
import torch
from optuna.trial import TrialState
from PIL import Image

from partopt.errors import UsageError
from partopt.images.dead_leaves import dead_leaves
from partopt.optimizer import worker as worker_module
from partopt.optimizer.board import JOB, OPEN, PREMISES, RETURNED, WITHDRAWN, end
from partopt.optimizer.coordinator import _Coursing
from partopt.optimizer.premises import Premises, UnfitError
from partopt.optimizer.worker import WorkerPace
from partopt.preprocessing import Preprocessing

from .fleet_of import PANEL, loaded

LINEAR = {"linear": PANEL["linear"]}
IDLE = WorkerPace(idle=0.2, patience=2.0)


pytestmark = pytest.mark.usefixtures("one_cache")


def posted(small, **premises):
    """A study whose coordinator has just posted its jobs and died."""
    search = small.search(
        optuna.storages.InMemoryStorage(), small.fleet(), LINEAR, small.cuts[-2:], exhaustive=True
    )
    fleet = search.crew
    fleet.premises = replace(fleet.premises, **premises)
    study = search._study()
    course = _Coursing(fleet, search, study)
    study.set_user_attr("threads", 1)
    study.set_user_attr(PREMISES, fleet.premises.as_dict())
    study.set_user_attr(OPEN, "open")
    course.threads = 1
    course._ahead(2)
    return search, study


def states(study):
    return {t.state for t in study.trials}


def folder_of(path, seed):
    path.mkdir()
    for i, image in enumerate(dead_leaves(60, 40, seed=seed)):
        Image.fromarray(image.transpose(1, 2, 0)).save(path / f"{i:03}.png")
    return path


def other_preprocessing():
    model = loaded()
    model.preprocessing = Preprocessing(32, 36, (0.4,) * 3, (0.5,) * 3)
    return {"model": model}


@pytest.mark.parametrize(
    ("own", "premises", "said"),
    [
        (lambda tmp: {"model": loaded(seed=2)}, {}, "`weights` got 'r' .hash .*give a copy"),
        (lambda tmp: {"data": folder_of(tmp / "p", 9)}, {}, "`data` got .*whose images .hash"),
        (lambda tmp: {"data": tmp / "nowhere"}, {}, "`data` got .*which is no folder"),
        (lambda tmp: other_preprocessing(), {}, "`mean`, `std` or `input-size` differ"),
        (lambda tmp: {}, {"version": 1}, "of attack version 1, this worker's partopt is of"),
        (lambda tmp: {}, {"source": "f" * 64}, "attack code is ffffffffffff.*same version"),
        (lambda tmp: {}, {"graph": "graph2:0"}, "`model` got 'tests:net', whose layer graph"),
        (lambda tmp: {}, {"features": "0" * 64}, "made by other code"),
        (lambda tmp: {}, {"minimum": 10**6}, "images"),
    ],
)
def test_a_worker_of_other_inputs_says_so_and_takes_no_job(small, tmp_path, own, premises, said):
    search, study = posted(small, **premises)
    worker = small.worker(search.storage, own=small.own(**own(tmp_path)), pace=IDLE)
    if premises == {"minimum": 10**6}:
        worker.own = small.own(data=folder_of(tmp_path / "few", 9))
    with pytest.raises(UnfitError, match=said) as caught:
        worker.run()
    assert str(caught.value).startswith(f"no job of study {study.study_name!r} is taken: ")
    assert "\n" not in str(caught.value)
    assert states(study) == {TrialState.WAITING}


def test_another_graph_is_another_model(small):
    search, study = posted(small)
    model = loaded()
    model.module = model.module[:-1]
    own = small.own(model=model, graph=model.trace())
    with pytest.raises(UnfitError, match="`model` got 'tests:net'"):
        small.worker(search.storage, own=own, pace=IDLE).run()
    assert states(study) == {TrialState.WAITING}


@pytest.mark.parametrize("value", [None, {}, "x", {"version": "6"}])
def test_premises_that_are_none_are_refused(small, value):
    search, study = posted(small)
    study.set_user_attr(PREMISES, value)
    with pytest.raises(UnfitError, match="not those of this version"):
        small.worker(search.storage, pace=IDLE).run()


@pytest.mark.parametrize(
    ("name", "value"),
    [("split", [1, 2]), ("split", [1, 2, -3]), ("seed", True), ("sides", ["32"]), ("images", 3)],
)
def test_premises_out_of_range_are_refused(small, name, value):
    told = {**small.premises().as_dict(), name: value}
    with pytest.raises(ValueError, match="premises"):
        Premises.of_dict(told)


def test_a_job_whose_key_the_worker_does_not_come_to_is_left_alone(small, monkeypatch):
    said = []
    monkeypatch.setattr(worker_module, "notice", said.append)
    search, study = posted(small)
    first, second = [t for t in study.trials if JOB in t.user_attrs]
    forged = {**first.user_attrs[JOB], "terms": {**first.user_attrs[JOB]["terms"], "seed": 77}}
    search.storage.set_trial_user_attr(first._trial_id, JOB, forged)
    assert small.worker(search.storage, pace=IDLE).run() == 1
    assert [t.state for t in study.trials] == [TrialState.WAITING, TrialState.COMPLETE]
    assert len(said) == 1
    assert "has another key by this worker's own code and inputs" in said[0]
    assert second.state == TrialState.WAITING


@pytest.mark.parametrize("job", [None, {"key": "x"}, {"cut": "nowhere"}])
def test_a_malformed_job_is_left_alone(small, job, monkeypatch):
    said = []
    monkeypatch.setattr(worker_module, "notice", said.append)
    search, study = posted(small)
    first = study.trials[0]
    told = job if job is None else {**first.user_attrs[JOB], **job}
    search.storage.set_trial_user_attr(first._trial_id, JOB, told)
    assert small.worker(search.storage, pace=IDLE).run() == 1
    assert len(said) == 1


def test_an_idle_worker_ends_and_a_stopped_one_gives_back(small):
    search, study = posted(small)
    worker = small.worker(search.storage)
    worker.on_progress = lambda what, share: worker.stop()
    assert worker.run() == 0
    assert [RETURNED in t.user_attrs for t in study.trials] == [True, False]
    assert small.worker(search.storage, pace=IDLE).run() == 1


def test_an_attack_has_the_threads_that_its_order_says(small):
    search, study = posted(small)
    first, seen = study.trials[0], []
    told = {**first.user_attrs[JOB], "threads": 2}
    search.storage.set_trial_user_attr(first._trial_id, JOB, told)
    worker = small.worker(search.storage, pace=IDLE)
    worker.on_progress = lambda what, share: seen.append((what, torch.get_num_threads()))
    before = torch.get_num_threads()
    worker.run()
    cuts = [t.user_attrs["cut_name"] for t in study.trials]
    assert {(w.split()[-1], n) for w, n in seen} == {(cuts[0], 2), (cuts[1], 1)}
    assert [t.user_attrs["threads"] for t in study.trials] == [2, 1]
    assert torch.get_num_threads() == before


def test_an_attack_that_nobody_wants_any_more_is_left_off(small):
    search, study = posted(small)
    worker = small.worker(search.storage, pace=replace(IDLE, patience=0.12))
    first, over = study.trials[0], threading.Event()

    def withdrawn(what, share):
        if not over.is_set():
            over.set()
            end(search.storage, first._trial_id, WITHDRAWN)
            threading.Event().wait(0.1)

    worker.on_progress = withdrawn
    assert worker.run() == 1
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert "key" not in study.trials[0].user_attrs


def test_a_result_is_handed_in_once_the_storage_is_back(small, monkeypatch):
    search, study = posted(small)
    worker = small.worker(search.storage, pace=IDLE)
    write, calls = worker._write, []

    def away(*args):
        calls.append(args)
        if len(calls) == 1:
            raise ConnectionError("the server closed the connection")
        write(*args)

    monkeypatch.setattr(worker, "_write", away)
    monkeypatch.setattr(worker_module.time, "sleep", lambda seconds: None)
    assert worker.run() == 2
    assert len(calls) == 3
    assert states(study) == {TrialState.COMPLETE}


def test_workers_of_one_storage_share_its_studies(small):
    one, _ = posted(small)
    other = optuna.create_study(storage=one.storage, study_name="other")
    other.set_user_attr(PREMISES, {**small.premises().as_dict(), "weights": "0" * 64})
    other.set_user_attr(OPEN, "open")
    worker = small.worker(one.storage, pace=IDLE)
    assert worker.run() == 2, "one study that is not ours keeps nobody from the other"
    assert any("'other'" in text for text in worker.refused.values())


def test_an_artifact_place_that_is_none_is_refused(small, tmp_path):
    (tmp_path / "file").write_text("x")
    storage = optuna.storages.InMemoryStorage()
    for where in (str(tmp_path / "file"), "s3://", "s3://a/b", "gs://a"):
        with pytest.raises(UsageError, match="`artifacts` got"):
            small.worker(storage, artifacts=where)
