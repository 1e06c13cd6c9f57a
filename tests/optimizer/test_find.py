"""A search whose times come from a profile: the same answer as where they are taken in place."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from partopt.config import Taken
from partopt.errors import ConfigError, UsageError
from partopt.images.load import Split
from partopt.optimizer import find as module
from partopt.optimizer import prepare
from partopt.optimizer.budgets import BUDGETS, Budget
from partopt.optimizer.find import find
from partopt.optimizer.requests import FindRequest
from partopt.profilers.base import Conditions, CutLatency, Duration, Profile, total_of
from partopt.profilers.machine import now, this_machine
from partopt.profilers.profile import cautions, handed_over_by
from partopt.profilers.target import TargetProfile
from partopt.reporting.table import render

SMALL = Budget("quick", "screening", Split(24, 8, 8), 32, 20, {"linear": {"max_cells": 4000}})
NET = """
import torch

from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 12, 3, 1, 1)
        self.mid = nn.Conv2d(12, 48, 4, 4)
        self.late = nn.Conv2d(48, 4, 8, 8)
        self.fc = nn.Linear(4, 3)
    def forward(self, x):
        x = torch.tanh(self.mid(torch.tanh(self.stem(x))))
        return self.fc(torch.tanh(self.late(x)).mean((2, 3)))
"""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(BUDGETS, "quick", SMALL)


def clocked(graph, cuts, how, progress=None) -> Profile:
    """Times by work alone: what a clock that never errs might say; heads in SGX are slow."""
    slow = 3.0 if how.enclave == "gramine-sgx" else 1.0

    def took(ms, backend):
        return Duration(ms, ms / 100, "measured", backend)

    latencies = []
    for cut in cuts:
        parts = (
            took(slow * (1 + cut.head_flops / 1e6), how.enclave),
            took(0.01 + cut.payload_bytes / 1e7, handed_over_by(how.accelerator)),
            took(1 + cut.tail_flops / 1e6, how.accelerator),
        )
        latencies.append(
            CutLatency(
                enclave=parts[0], handoff=parts[1], accelerator=parts[2], total=total_of(*parts)
            )
        )
    return Profile(
        cuts=latencies,
        full_enclave=took(slow * (2 + graph.flops / 1e6), how.enclave),
        full_accelerator=took(2 + graph.flops / 1e6, how.accelerator),
        threads=how.threads,
        batch=how.batch,
        repetitions=how.repetitions,
        warnings=cautions(how.enclave, how.accelerator, ""),
        taken=Taken(machine=this_machine("target"), at=now()),
    )


def profiled(path, loaded, **how):
    conditions = Conditions(**how)
    graph = loaded.trace()
    every = graph.cuts("all")
    measured = clocked(graph, every, conditions)
    TargetProfile.of(graph, every, measured, conditions, spec="net", weights="none").write(path)
    return path


@pytest.fixture
def never(monkeypatch):
    """No time is taken here."""

    def refuse(*_, **__):
        raise AssertionError("a time was taken here")

    monkeypatch.setattr(module, "profile", refuse)
    monkeypatch.setattr(module, "verify", refuse)


def told(result) -> dict:
    """A result without what must differ: when, from what, and what a second run reuses."""
    raw = json.loads(result.config.to_json())
    raw["taken"]["at"] = raw["taken"]["profile"] = None
    del raw["search"]
    if raw["latency_ms"]:
        del raw["latency_ms"]["verified"]
    for row in raw["cuts"]:
        for attack in row["attacks"]:
            del attack["seconds"]
    for attack in raw["privacy"]["attacks"]:
        del attack["seconds"]
    return raw


def test_a_profile_gives_the_answer_that_profiling_in_place_gives(
    tiny_loaded, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "profile", clocked)
    path = profiled(tmp_path / "t.json", tiny_loaded)
    in_place = find(tiny_loaded, ssim=0.9)
    by_file = find(tiny_loaded, ssim=0.9, profile=path)
    assert in_place.found
    assert told(in_place) == told(by_file)
    assert in_place.config.taken.profile is None
    assert by_file.config.taken.profile is not None
    assert in_place.config.latency_ms.verified is not None
    assert by_file.config.latency_ms.verified is None, "this machine ran nothing for real"
    assert by_file.config.recommendation == "not compared", "one CPU, wherever it stands"
    assert any("without an enclave" in w for w in by_file.config.warnings)
    model = "slowdown=2,transition_us=0,epc_mib=1000"
    config = find(tiny_loaded, ssim=0.9, profile=path, sgx_model=model).config
    whole = TargetProfile.read(path).full_enclave.ms
    assert config.full_enclave_ms.ms == pytest.approx(2 * whole)
    assert config.full_enclave_ms.basis == "modelled"
    assert config.full_enclave_ms.backend.endswith("of native")


def test_times_of_an_enclave_elsewhere_decide_here(tiny_loaded, tmp_path, never):
    path = profiled(tmp_path / "t.json", tiny_loaded, enclave="gramine-sgx", accelerator="cuda")
    result = find(tiny_loaded, ssim=0.9, profile=path, attackers="linear")
    config = result.config
    assert config.recommendation == "split"
    assert config.full_enclave_ms.backend == "gramine-sgx"
    assert not any("no GPU" in w or "without an enclave" in w for w in config.warnings)
    assert config.taken.machine.name == "target"
    passing = [r.latency_ms.total.ms for r in config.cuts if r.status == "screened"]
    assert config.latency_ms.total.ms <= min(passing) * 1.05, "one of the fastest there"
    text = str(render(config).renderables[-1])
    assert "Times were taken on target (" in text
    assert config.taken.profile[:12] in text


def test_another_graph_is_refused_before_images_are_read(tiny_loaded, tmp_path, never, monkeypatch):
    path = profiled(tmp_path / "t.json", tiny_loaded)
    raw = json.loads(path.read_text())
    raw["model"]["graph_hash"] = raw["model"]["graph_hash"][:-1] + "x"
    path.write_text(json.dumps(raw))
    monkeypatch.setattr(prepare, "load_images", lambda *_, **__: pytest.fail("images were read"))
    with pytest.raises(ConfigError, match="is of another layer graph"):
        find(tiny_loaded, profile=path)


def test_what_a_profile_says_too_may_be_given(tiny_loaded, tmp_path):
    path = profiled(tmp_path / "t.json", tiny_loaded, enclave="gramine-sgx", threads=2)
    for said in ({}, {"threads": 2, "batch": 1}, {"enclave": "auto"}, {"enclave": "gramine-sgx"}):
        request = FindRequest.of(tiny_loaded, {"profile": path, "accelerator": "cpu", **said})
        assert request.profile.conditions.threads == 2


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"threads": 2}, "`threads` got 2, but profile .* holds times under 1"),
        ({"batch": 4}, "`batch` got 4"),
        ({"repetitions": 3}, "`repetitions` got 3"),
        ({"enclave": "native"}, "`enclave` got 'native', but .* under 'gramine-sgx'"),
        ({"sgx_model": "default"}, "`sgx-model` got a model, but .* inside SGX"),
    ],
)
def test_what_a_profile_contradicts_is_refused(tiny_loaded, tmp_path, option, said):
    path = profiled(tmp_path / "t.json", tiny_loaded, enclave="gramine-sgx")
    with pytest.raises(UsageError, match=said):
        find(tiny_loaded, profile=path, **option)


def test_a_profile_of_another_process_is_what_the_table_shows(tmp_path, monkeypatch, never):
    """Made by the command line, natively; every figure of it stands in the result as it is."""
    (tmp_path / "profnet.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    line = "profile --model profnet:Net --weights none --input-size 32 --repetitions 3 --out t.json"
    options = ["--machine", "far away", "--enclave", "native", "--accelerator", "cpu"]
    subprocess.run(
        [sys.executable, "-m", "partopt", *line.split(), *options],
        check=True,
        cwd=tmp_path,
        capture_output=True,
    )
    result = find("profnet:Net", weights="none", input_size=32, ssim=0.9, profile="t.json")
    raw = json.loads((tmp_path / "t.json").read_text())
    stored = {cut["name"]: cut for cut in raw["cuts"]}
    assert len(result.config.cuts) == len(stored)
    for row in result.config.cuts:
        for part in ("enclave", "handoff", "accelerator"):
            time = getattr(row.latency_ms, part)
            assert {"ms": time.ms, "noise_ms": time.noise_ms} == stored[row.name][part]
    assert result.config.full_enclave_ms.ms == raw["full_enclave"]["ms"]
    assert result.config.taken.machine.name == "far away"
    assert result.config.taken.at == raw["taken"]["at"]
    with pytest.raises(ConfigError, match="its input is 1x3x32x32, not 1x3x64x64"):
        find("profnet:Net", weights="none", input_size=64, profile="t.json")
