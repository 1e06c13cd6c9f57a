import contextlib
import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from partopt import cli
from partopt.config import SplitConfig
from partopt.images.load import Split
from partopt.notices import notice
from partopt.optimizer.budgets import BUDGETS, Budget

NET = """
import torch
from torch import nn
def make():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 4, 8, 8), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
class Poisoned(nn.Sequential):
    def forward(self, x):
        return super().forward(x).relu().log().clamp(-5).mean((2, 3))
def poisoned():
    torch.manual_seed(1)
    return Poisoned(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1))
def leaky():
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))
"""
SMALL = Budget(
    "quick",
    "screening",
    Split(64, 16, 24),
    32,
    20,
    {
        "linear": {"max_cells": 8000},
        "decoder": {"epochs": 1, "width": 16, "narrowest": 8, "crops": 0},
    },
)


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
    assert "Candidate cut after" in shown.out
    assert "candidate only, screened, not certified: this was a screening" in shown.err
    assert "make.split.json" in shown.err
    assert "Traceback" not in shown.err


def test_json_is_alone_on_stdout(here, capsys):
    assert cli.run([*FIND, "--json", "--out", "x.json"]) == 0
    shown = capsys.readouterr()
    raw = json.loads(shown.out)
    assert raw["schema"] == 1
    assert raw == json.loads((here / "x.json").read_text())


def test_no_safe_cut_exits_with_3_and_writes_a_config_without_a_cut(here, capsys):
    code = cli.run(["find", "--model", "clinet:leaky", "--input-size", "32", "--repetitions", "1"])
    shown = capsys.readouterr()
    assert code == 3
    assert "No safe cut" in shown.out
    assert "no safe cut: leaky.split.json holds the evidence" in shown.err
    config = SplitConfig.read(here / "leaky.split.json")
    assert config.cut is None
    assert config.cuts
    assert not any(row.safe for row in config.cuts)
    for command, code in (
        (["export", "leaky.split.json", "--out", "b", "--trust-model"], 2),
        (["check", "leaky.split.json", "--trust-model"], 1),
        (["run", "leaky.split.json", "--input", "clinet.py"], 1),
    ):
        assert cli.run(command) == code
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert "bug" not in said.err
        assert len((said.err or said.out).strip().splitlines()) <= 6
    assert cli.run(["compare", "leaky.split.json", "leaky.split.json"]) == 0
    assert cli.run(["report", "leaky.split.json", "--format", "md"]) == 0


def test_why_attacks_failed_is_said_and_stored(here, capsys):
    find = ["find", "--model", "clinet:poisoned", "--input-size", "32", "--repetitions", "1"]
    code = cli.run([*find, "--cuts", "0,log", "--attackers", "linear"])
    shown = capsys.readouterr()
    assert code == 3
    assert "linear on log: the head up to 'log' gives values that are not finite (-inf)" in (
        shown.out
    )
    early, late = SplitConfig.read(here / "poisoned.split.json").cuts
    assert early.status == "leaks", "its features are finite"
    assert early.score > 0.5
    assert (late.status, late.attacks[0].outcome) == ("failed", "failed")
    assert "not finite" in late.reason
    assert "not finite" in late.attacks[0].note
    assert cli.run(["report", "poisoned.split.json", "--format", "md"]) == 0
    assert "not finite" in (here / "poisoned.report.md").read_text()


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
    export = ["export", "make.split.json", "--out", "bundle", "--trust-model"]
    assert cli.run(export) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "go on with --accept-screening --even-if-slower" in said
    for option in ("--even-if-slower", "--accept-screening"):
        assert cli.run([*export, option]) == 2, "neither option stands for the other"
        assert option not in capsys.readouterr().err
    assert not (here / "bundle").exists()
    assert cli.run([*export, "--even-if-slower", "--accept-screening"]) == 0
    assert "screened, not certified" in " ".join(capsys.readouterr().err.split())
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
        *[
            (["find", "--model", "clinet:make", f"--{option}", value], 2, words)
            for option, value, words in [
                ("threads", "100000", "`threads` got 100000; use 1 to"),
                ("threads", "0", "`threads` got 0"),
                ("seed", "-1", "`seed` got -1; use 0 to"),
                ("repetitions", "0", "`repetitions` got 0; use 1 or more"),
                ("batch", "0", "`batch` got 0"),
                ("workers", "0", "`workers` got 0; use 1 to"),
                ("max-cuts", "0", "`max_cuts` got 0"),
                ("depth", "0", "`depth` got 0"),
                ("feature-cache", "-1", "`feature_cache` got -1.0"),
                ("ssim", "nan", "`ssim` got nan"),
                ("input-size", "1", "`input_size` got 1; use 16 to"),
                ("mean", "nan", "`mean` got [nan]"),
                ("std", "0", "`std` got [0.0]"),
                ("attackers", "linear,", "a name is empty"),
                ("attackers", "linear,linear", "'linear' twice"),
                ("attackers", "linaer", "nearest: linear"),
                ("sgx-model", "slowdown=nan", "all finite"),
                ("sgx-model", "fast", "`sgx-model` got 'fast'"),
                ("cuts", "stage,0", "a kind of cuts stands alone"),
                ("storage", "sqlite:///no/such/a.db", "`storage` got"),
                ("storage", "./a.db", "`storage` got"),
                ("out", ".", "`out` got '.', which is a folder"),
                ("out", "clinet.py/s.json", "`out` got 'clinet.py/s.json'"),
            ]
        ],
        (["cuts", "clinet:make", "--depth", "0"], 2, "`depth` got 0"),
        (["cuts", "clinet.py:make"], 2, "clinet:make"),
        (
            ["attack", "--model", "clinet:make", "--cut", "0", "--images-out", "."],
            2,
            "`images-out`",
        ),
        (["attack", "--model", "clinet:make", "--cut", "0", "--seed", "-1"], 2, "`seed`"),
        (["check", "s.json", "--junit", "."], 2, "`junit` got '.'"),
        (["check", "s.json", "--markdown", "."], 2, "`markdown` got '.'"),
        (["strength", "--model", "clinet:make", "--cut", "0", "--chart", "c.pdf"], 2, "`chart`"),
        (["reproduce", "--out", "clinet.py"], 2, "`out` got 'clinet.py', which is a file"),
        (["export", "s.json", "--out", "clinet.py"], 2, "`out` got 'clinet.py', which is a file"),
        (["bench", "b", "--out", "."], 2, "`out` got '.'"),
        (["data", ".", "--preview", "--out", "."], 2, "`out` got '.'"),
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

    monkeypatch.setattr("partopt.optimizer.find.find_cut", stop)
    assert cli.run(FIND) == 130
    assert "goes on from the attacks" in capsys.readouterr().err


def test_an_interrupt_that_a_callback_swallows_ends_at_the_next_stage(here, monkeypatch):
    def swallow(request, watcher):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        watcher.stage("the next one")
        raise AssertionError("went on")

    monkeypatch.setattr("partopt.optimizer.find.find_cut", swallow)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored
    try:
        assert cli.run(FIND) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_an_end_of_file_is_no_interrupt(here, capsys, monkeypatch):
    def torn(*a, **k):
        raise EOFError("No data left in file")

    monkeypatch.setattr("partopt.optimizer.find.find_cut", torn)
    assert cli.run(FIND) == 1
    said = capsys.readouterr().err
    assert "EOFError" in said
    assert "interrupted" not in said


def test_what_the_system_refuses_is_no_bug(here, capsys, monkeypatch):
    def denied(*a, **k):
        raise OSError(13, "Permission denied", "/x/y")

    monkeypatch.setattr("partopt.optimizer.find.find_cut", denied)
    assert cli.run(FIND) == 1
    said = capsys.readouterr().err
    assert "the system refused at '/x/y': permission denied" in said
    assert "this is a bug" not in said


def test_a_full_disk_is_one_sentence(here, capsys, monkeypatch):
    def full(*a, **k):
        raise OSError(errno.ENOSPC, "No space left on device", "out.json")

    monkeypatch.setattr("partopt.optimizer.find.find_cut", full)
    assert cli.run(FIND) == 1
    said = capsys.readouterr().err
    assert said == (
        "error: 'out.json' cannot be written (No space left on device): make room there and run "
        "the same command again\n"
    )


def test_a_cache_that_cannot_be_made(here, capsys, monkeypatch):
    monkeypatch.setenv("PARTOPT_CACHE", str(here / "clinet.py" / "in"))
    assert cli.run(FIND) == 2
    assert "`PARTOPT_CACHE`" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["cuts", "clinet:make", "--input-size", "32"], ["schema"]])
def test_a_reader_that_goes_away_changes_nothing(here, arguments):
    program = "import os, sys; from partopt.cli import run; code = run(sys.argv[1:]); "
    program += "os.write(2, b'code %d' % code)"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert done.returncode == 0
    assert done.stderr.endswith("code 0")
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_notices_are_lines_on_stderr(here, capsys):
    cli.run(["schema"])
    capsys.readouterr()
    notice("the journal was torn")
    assert capsys.readouterr().err == "! the journal was torn\n"


def test_as_a_module_and_version():
    done = subprocess.run(
        [sys.executable, "-m", "partopt", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.startswith("partopt ")
    bare = subprocess.run([sys.executable, "-m", "partopt"], capture_output=True, text=True)
    assert bare.returncode == 2
    assert "find" in bare.stdout + bare.stderr
