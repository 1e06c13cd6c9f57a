"""One pass over all cuts of a model, for a file."""

from __future__ import annotations

import io
import json
import shutil

import pytest
from rich.console import Console

from partopt import cli
from partopt.errors import CutError, UsageError
from partopt.models.load import load_model
from partopt.profilers.target import TargetProfile
from partopt.reporting.profiled import render, told
from partopt.studies import profiling as module
from partopt.studies.profiling import profile_model

NET = """
from torch import nn
def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten(),
                         nn.Linear(4 * 28 * 28, 3))
"""
HOW = {"enclave": "native", "accelerator": "cpu", "repetitions": 2, "weights": "none"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "timednet.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_file_holds_every_cut_and_shows_those_asked_for():
    graph = load_model("timednet:make", input_size=32, weights="none").trace()
    every = [cut.name for cut in graph.cuts("all")]
    found = profile_model("timednet:make", input_size=32, cuts=[every[1]], machine="it", **HOW)
    assert [cut.name for cut in found.target.cuts] == every
    assert [found.target.cuts[i].name for i in found.indices] == [every[1]]
    found.target.hold(graph)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render(found))
    text = " ".join(console.export_text().split())
    assert every[1] in text.split()
    assert "Taken on it (" in text
    assert found.target.taken.at in text
    assert "! random weights" in text
    assert "! no GPU" in text
    assert told(found.target) == f"{len(every)} cuts of timednet:make on it"


def test_what_is_wrong_is_said_before_anything_is_timed(monkeypatch):
    monkeypatch.setattr(module, "profile", lambda *_, **__: pytest.fail("was timed"))
    with pytest.raises(CutError):
        profile_model("timednet:make", input_size=32, cuts=["nope"], **HOW)
    with pytest.raises(UsageError, match="`threads` got 0"):
        profile_model("timednet:make", threads=0, **HOW)
    with pytest.raises(UsageError, match="`data` is no argument of profile_model"):
        profile_model("timednet:make", data="photos")


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    line = "profile --model timednet:make --weights none --input-size 32 --repetitions 2 --json"
    assert cli.run([*line.split(), "--out", "there/x.json", "--machine", "it"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads((tmp_path / "there" / "x.json").read_text())
    assert TargetProfile.read("there/x.json").taken.machine.name == "it"
    assert "profile: there/x.json, " in said.err
    (tmp_path / "cut.json").write_bytes((tmp_path / "there" / "x.json").read_bytes()[:-300])
    code = cli.run(
        ["find", "--model", "timednet:make", "--weights", "none", "--profile", "cut.json"]
    )
    said = capsys.readouterr().err
    assert code == 1
    assert "'cut.json' is no whole JSON file" in said
    assert said.count("\n") == 1


@pytest.mark.gramine
@pytest.mark.skipif(shutil.which("gramine-direct") is None, reason="gramine-direct is not on PATH")
def test_a_profile_made_inside_gramine():
    found = profile_model("timednet:make", input_size=32, **{**HOW, "enclave": "gramine-direct"})
    graph = load_model("timednet:make", input_size=32, weights="none").trace()
    read = TargetProfile.parse(found.target.to_json().encode())
    times = read.times(graph, graph.cuts("all"))
    assert {cut.enclave.backend for cut in times.cuts} == {"gramine-direct"}
    assert times.worker.peak_bytes > 1 << 20
    assert times.taken.machine.gramine
    assert any("inside gramine-direct" in w for w in times.warnings)
