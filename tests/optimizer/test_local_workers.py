from __future__ import annotations

import sys

import pytest
import typer

from partopt import cli
from partopt.config import SplitConfig
from partopt.errors import StorageError, UsageError
from partopt.graph.traceargs import Tracing
from partopt.images.load import Split
from partopt.optimizer import local_workers
from partopt.optimizer.budgets import BUDGETS, Budget
from partopt.optimizer.find import find
from partopt.optimizer.local_workers import LocalWorkers, arguments
from partopt.optimizer.requests import FindRequest

SMALL = Budget("quick", "screening", Split(24, 12, 12), 32, 20, {"linear": {"max_cells": 2000}})
NETWORK = """
from torch import nn
def net():
    steps = [nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), nn.Conv2d(8, 8, 3, 2, 1), nn.Tanh()]
    return nn.Sequential(*steps, nn.Flatten(), nn.Linear(512, 3))
"""


def request(**options):
    return FindRequest.of("a.b:c", {"storage": "s.journal", "workers": 2, **options})


def parsed(options):
    """What `partopt worker` makes of them."""
    command = typer.main.get_command(cli.app).commands["worker"]
    return command.make_context("worker", list(options)).params


def test_a_worker_is_told_the_inputs_of_the_run():
    told = arguments(
        request(
            weights="w.pth#ema",
            data="photos",
            mean=[-0.5, 0.25, 1e-7],
            std=[0.5],
            input_size=64,
            seed=7,
            trust_model=True,
            require_weights=True,
            tracing=Tracing({"mask": None, "name": "a b"}, ("x.Y", "Z")),
            accelerator="cpu",
            artifacts="there",
            feature_cache_gib=0.5,
        )
    )
    found = parsed(told)
    assert (found["model"], found["weights"], found["seed"]) == ("a.b:c", "w.pth#ema", 7)
    assert (found["mean"], found["std"]) == ("-0.5,0.25,1e-07", "0.5")
    assert (str(found["data"]), found["input_size"]) == ("photos", 64)
    assert found["artifacts"] == "there"
    assert found["trust_model"] is found["require_weights"] is True
    assert (found["accelerator"], found["feature_cache"]) == ("cpu", 0.5)
    tracing = Tracing.parse(found["concrete_args"], found["leaf_modules"])
    assert tracing == Tracing({"mask": None, "name": "a b"}, ("x.Y", "Z"))


def test_what_no_worker_can_be_told_is_refused(tiny_loaded):
    with pytest.raises(UsageError, match="holds a comma"):
        arguments(request(tracing=Tracing({"mask": "a,b"})))
    with pytest.raises(UsageError, match="`workers` got 1 with a loaded model"):
        find(tiny_loaded, storage="s.journal", workers=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"storage": None, "workers": 0}, "`workers` got 0; use 1 to 64, or give the --storage"),
        ({"workers": 65}, "`workers` got 65"),
        ({"workers": -1}, "`workers` got -1"),
        ({"storage": "sqlite:///a.db"}, "two workers may take the same job"),
        ({"workers": None, "artifacts": "x"}, "`artifacts` got 'x', which is for workers"),
    ],
)
def test_what_is_no_fleet_is_refused(options, said):
    with pytest.raises(UsageError, match=said):
        request(**options)


def test_without_a_storage_or_a_number_nothing_changes():
    assert not FindRequest.of("a", {"workers": 2}).fleet
    assert not FindRequest.of("a", {"storage": "s.journal"}).fleet
    assert request().fleet
    assert request(workers=0).fleet


def started(monkeypatch, code, count=1):
    workers = LocalWorkers(count, [], "s.journal")
    monkeypatch.setattr(workers, "_command", [sys.executable, "-c", code])
    return workers


def test_a_worker_that_refuses_ends_the_run_with_its_sentence(monkeypatch):
    code = "import sys; sys.exit('error: `weights` got another file')"
    with started(monkeypatch, code) as workers:
        workers._running[0][0].wait()
        with pytest.raises(StorageError, match="ended: `weights` got another file"):
            workers.check()


def test_a_worker_that_was_killed_is_started_again_and_all_end_with_the_run(monkeypatch):
    said = []
    monkeypatch.setattr(local_workers, "notice", said.append)
    with started(monkeypatch, "import sys; sys.stdin.read()", 2) as workers:
        workers._running[0][0].kill()
        workers._running[0][0].wait()
        workers.check()
        running = [process for process, _ in workers._running]
        assert len(running) == 2
    assert all(process.poll() == 0 for process in running)
    assert len(said) == 1


def test_workers_do_not_outlive_a_run_that_fails(monkeypatch):
    with (
        pytest.raises(RuntimeError),
        started(monkeypatch, "import time; time.sleep(60)") as workers,
    ):
        raise RuntimeError
    assert [process.poll() for process, _ in workers._running] == [-15]


def test_no_password_stands_in_a_list_of_processes():
    workers = LocalWorkers(1, ["--model", "m"], "postgresql://me:secret@h/d")
    assert "secret" not in " ".join(workers._command)
    assert workers._environment["PARTOPT_STORAGE"] == "postgresql://me:secret@h/d"


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "spread.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setitem(BUDGETS, "quick", SMALL)
    yield tmp_path
    sys.modules.pop("spread", None)


def test_find_starts_a_worker_and_shows_no_password(here, postgres, capsys):
    url = postgres()
    command = [
        *("find", "--model", "spread:net", "--weights", "none", "--input-size", "32"),
        *("--repetitions", "1", "--cuts", "3", "--ssim", "1"),
        *("--storage", url, "--workers", "1", "--out", "found.json"),
    ]
    sys.argv[1:], before = command, sys.argv[1:]
    try:
        assert cli.run(command) in (0, 6)
    finally:
        sys.argv[1:] = before
    said = "".join(capsys.readouterr())
    text = (here / "found.json").read_text()
    assert "not-to-be-seen" not in text + said, "the password of the database"
    found = SplitConfig.read("found.json")
    assert found.search.storage.startswith("127.0.0.1:")
    assert "--storage postgresql://partopt:***@127.0.0.1" in found.command.replace("'", "")
    assert found.search.trials_run > 0
    assert found.cut.name == "3"


def test_a_worker_whose_database_is_away_says_so(here, capsys):
    url = "postgresql://me:secret@127.0.0.1:1/x"
    assert cli.run(["worker", "--model", "spread:net", "--weights", "none", "--storage", url]) == 2
    said = capsys.readouterr().err
    assert "secret" not in said
    assert "`storage` got 'postgresql://me:***@127.0.0.1:1/x'" in said
    assert said.count("\n") == 1
    assert cli.run(["worker", "--model", "spread:net"]) == 2
    assert "`storage` is needed" in capsys.readouterr().err
