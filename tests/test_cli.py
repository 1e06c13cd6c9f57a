import json
import subprocess
import sys

import pytest

from partopt import cli
from partopt.config import SplitConfig
from partopt.datasets import Split
from partopt.optimizer.budgets import BUDGETS, Budget

NET = """
import torch
from torch import nn
def make():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 4, 8, 8), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
def leaky():
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))
"""
SMALL = Budget(
    "quick", "screening", Split(64, 16, 24), 32, 20,
    {"linear": {"max_cells": 8000}, "decoder": {"epochs": 1, "width": 16, "narrowest": 8}},
)  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "clinet.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(BUDGETS, "quick", SMALL)
    yield tmp_path
    sys.modules.pop("clinet", None)


FIND = ["find", "--model", "clinet:make", "--input-size", "32", "--repetitions", "2"]


def test_find_writes_a_split_config_and_a_table(here, capsys):
    assert cli.run(FIND) == 0
    shown = capsys.readouterr()
    config = SplitConfig.read(here / "make.split.json")
    assert config.cut.name in shown.out
    assert "SCREENING ONLY" in shown.out
    assert "make.split.json" in shown.err
    assert "Traceback" not in shown.err


def test_json_is_alone_on_stdout(here, capsys):
    assert cli.run([*FIND, "--json", "--out", "x.json"]) == 0
    shown = capsys.readouterr()
    raw = json.loads(shown.out)
    assert raw["schema"] == 1
    assert raw == json.loads((here / "x.json").read_text())


def test_no_safe_cut_exits_with_3_and_writes_nothing(here, capsys):
    code = cli.run(["find", "--model", "clinet:leaky", "--input-size", "32", "--repetitions", "1"])
    shown = capsys.readouterr()
    assert code == 3
    assert "No safe cut" in shown.out
    assert "no split config written" in shown.err
    assert not list(here.glob("*.split.json"))


def test_times_of_one_cpu_are_not_sold(here, capsys):
    assert cli.run([*FIND, "--enclave", "native", "--accelerator", "cpu"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert SplitConfig.read(here / "make.split.json").recommendation == "not compared"
    headline = shown[: shown.index("cut (last in enclave)")]
    assert "of the work" in headline
    assert "say nothing of a deployment" in headline
    assert "ms against" not in headline


def test_do_not_split_is_an_answer_with_a_code_of_its_own(here, capsys):
    """Enclave and host of the same speed: the hand-off is all that a split adds."""
    modelled = [*FIND, "--sgx-model", "slowdown=1,transitions=0", "--accelerator", "cpu"]
    assert cli.run(modelled) == 6
    shown = capsys.readouterr()
    assert shown.out.startswith("Do not split clinet:make")
    assert "--accelerator cuda" in shown.out
    config = SplitConfig.read(here / "make.split.json")
    assert config.recommendation == "do not split"
    assert config.cut is not None
    assert cli.run(["export", "make.split.json", "--out", "bundle"]) == 2
    assert "--even-if-slower" in capsys.readouterr().err
    assert not (here / "bundle").exists()
    assert cli.run(["export", "make.split.json", "--out", "bundle", "--even-if-slower"]) == 0
    assert any((here / "bundle").iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["find"], 2, "Missing option '--model'"),
        (["find", "--model", "resnet5O"], 2, "nearest: resnet50"),
        (["find", "--model", "clinet:make", "--ssim", "x"], 2, "--ssim"),
        (["find", "--model", "clinet:make", "--ssim", "2"], 2, "`ssim` got 2.0"),
        (["find", "--model", "clinet:make", "--data", "/no/where"], 2, "`data` got '/no/where'"),
        (["find", "--model", "clinet:make", "--weights", "/no.pth"], 1, "does not exist"),
        (["find", "--model", "clinet:make", "--enclave", "gramine-sgx"], 1, "gramine-sgx"),
        (["find", "--model", "clinet:make", "--mean", "a,b"], 2, "`mean` got 'a,b'"),
        (["find", "--model", "clinet:make", "--cuts", "paper"], 2, "no cut points"),
        (["cuts", "nope.pt2"], 2, "does not exist"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_errors_are_one_sentence_with_a_code(here, capsys, arguments, code, words):
    assert cli.run(arguments) == code
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_debug_shows_the_traceback(here):
    with pytest.raises(Exception, match="nearest"):
        cli.run(["find", "--model", "resnet5O", "--debug"])


def test_cuts(here, capsys):
    assert cli.run(["cuts", "clinet:make", "--input-size", "32", "--json"]) == 0
    names = [c["name"] for c in json.loads(capsys.readouterr().out)]
    assert names == ["0", "1", "2", "3", "4"]
    assert cli.run(["cuts", "resnet50", "--cuts", "paper"]) == 0
    shown = capsys.readouterr()
    assert "layer4.2.relu_2" in shown.out
    assert "5 cuts" in shown.err


def test_doctor_and_schema(capsys):
    assert cli.run(["doctor", "--json"]) == 0
    names = {f["name"] for f in json.loads(capsys.readouterr().out)}
    assert {"torch", "GPU", "SGX", "Gramine", "cache"} <= names
    assert cli.run(["doctor"]) == 0
    assert "Gramine" in capsys.readouterr().out
    assert cli.run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "SplitConfig"


def test_interrupt(here, capsys, monkeypatch):
    def stop(*a, **k):
        raise KeyboardInterrupt

    monkeypatch.setattr("partopt.optimizer.find.find", stop)
    assert cli.run(FIND) == 130
    assert "goes on from the attacks" in capsys.readouterr().err


def test_as_a_module_and_version():
    done = subprocess.run(
        [sys.executable, "-m", "partopt", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.startswith("partopt ")
    bare = subprocess.run([sys.executable, "-m", "partopt"], capture_output=True, text=True)
    assert bare.returncode == 2
    assert "find" in bare.stdout + bare.stderr
