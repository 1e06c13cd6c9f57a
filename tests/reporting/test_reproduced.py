"""The published study: both protocols on the published points, resumable, one point alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from partopt import cli
from partopt.config import SplitConfig, Taken
from partopt.errors import UsageError
from partopt.images.load import Split
from partopt.models.load import load_model
from partopt.optimizer import budgets, protocols
from partopt.profilers.base import Conditions, CutLatency, Duration, Profile, total_of
from partopt.profilers.machine import now, this_machine
from partopt.profilers.target import TargetProfile
from partopt.reporting import reproduced
from partopt.studies import reproduce as module
from partopt.studies.published import HEADLINES, PHOTOS, ratio, share
from partopt.studies.reproduce import reproduce

NAMES = ["relu", "layer1", "layer2", "layer3", "layer4"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Both reduced budgets, smaller still."""
    less = {"split": Split(40, 8, 12), "resolution": 32, "minimum_images": 20}
    paper = replace(
        protocols.PUBLISHED_BUDGETS["quick"], **less, settings={"cgan": {"epochs": 1, "width": 16}}
    )
    ours = replace(budgets.BUDGETS["quick"], **less, settings={"linear": {"max_cells": 2000}})
    monkeypatch.setitem(protocols.PUBLISHED_BUDGETS, "quick", paper)
    monkeypatch.setitem(budgets.BUDGETS, "quick", ours)
    monkeypatch.setattr(module, "REDUCED_SIZE", 32)


def run(**kwargs):
    arguments = {"weights": "none", "budget": "quick", "repetitions": 1, **kwargs}
    return reproduce("resnet18", **arguments)


@pytest.fixture
def study():
    return run()


def far_away(path, batch=1):
    """A profile of resnet18 in which layer2 takes other times than the rest."""
    graph = load_model("resnet18", weights="none").trace()
    how = Conditions(enclave="gramine-sgx", accelerator="cuda", batch=batch, repetitions=1)
    point = graph.cuts("paper")[2].node

    def took(ms, backend):
        return Duration(ms, 0.0, "measured", backend)

    latencies = []
    for cut in graph.cuts("all"):
        here = cut.node == point
        parts = {
            "enclave": took(3.0 if here else 4.0, "gramine-sgx"),
            "handoff": took(0.5, "shm"),
            "accelerator": took(1.25 if here else 1.0, "cuda"),
        }
        latencies.append(CutLatency(**parts, total=total_of(*parts.values())))
    measured = Profile(
        cuts=latencies,
        full_enclave=took(10.0, "gramine-sgx"),
        full_accelerator=took(2.0, "cuda"),
        threads=1,
        batch=batch,
        repetitions=1,
        taken=Taken(machine=this_machine("far away"), at=now()),
    )
    every = graph.cuts("all")
    TargetProfile.of(graph, every, measured, how, spec="resnet18", weights="none").write(path)
    return path


def test_the_whole_study(study, tmp_path, monkeypatch):
    assert [p.number for p in study.points] == [1, 2, 3, 4, 5]
    assert [p.cut.split(".")[0] for p in study.points] == NAMES
    assert (study.input_size, study.attacked_size) == (224, 32)
    assert study.random_weights
    assert any(n.startswith("REDUCED") for n in study.notes)
    assert [a.name for a in study.paper_config.privacy.attackers] == ["cgan"]
    for p in study.points:
        assert -1 <= p.cgan_ssim <= 1
        assert p.total_ms == pytest.approx(p.enclave_ms + p.handoff_ms + p.accelerator_ms)
        assert p.share == pytest.approx(1 - p.total_ms / study.full_ms)
        assert p.strict_attacker == "linear"
    first = next((p.number for p in study.points if p.published_safe), None)
    assert study.chosen == first

    files = reproduced.write(
        [study], tmp_path / "out", (1, 2, 3), reproduced.FIGURES, "the command"
    )
    names = {f.name for f in files}
    assert {"reproduce.md", "resnet18.json", "figure-3-resnet18.svg"} <= names
    assert "figure-7-resnet18.png" in names
    assert "figure-8-resnet18.png" not in names, "that one is of telemetry"
    page = (tmp_path / "out" / "reproduce.md").read_text()
    assert "`the command`" in page
    assert "**RANDOM WEIGHTS**" in page
    assert page.count("\n| 3 | `layer2") == 1
    data = json.loads((tmp_path / "out" / "resnet18.json").read_text())
    assert len(data["points"]) == 5
    for name, protocol in (("paper_config", "paper"), ("strict_config", "strict")):
        config = SplitConfig.parse(json.dumps(data[name]).encode())
        assert config.privacy.protocol == protocol
    with Image.open(tmp_path / "out" / "figure-4-resnet18.png") as strip:
        assert strip.height == 32 * (1 + 2 * 5), "original, c-GAN and panel at five points"

    # Again at one point, by times of a machine that is not here.
    monkeypatch.setattr(module, "profile", lambda *_, **__: pytest.fail("was timed"))
    one = run(cut="3", profile=far_away(tmp_path / "far.json"))
    (point,) = one.points
    assert (point.enclave_ms, point.handoff_ms, point.accelerator_ms) == (3.0, 0.5, 1.25)
    assert one.full_ms == 10.0
    assert one.basis.startswith("measured on gramine-sgx + ")
    assert not any("no GPU" in n or "without an enclave" in n for n in one.notes)
    assert "times were taken on far away (" in reproduced.markdown([one], (1,), {}, "")
    assert reproduced.as_dict(one, "")["taken"]["machine"]["name"] == "far away"
    assert any("no GPU" in n for n in study.notes) or torch.cuda.is_available()
    with pytest.raises(UsageError, match="`profile` got times of 2 images a run"):
        run(profile=far_away(tmp_path / "far.json", batch=2))

    assert one.paper_config.search.trials_run == 0, "stored attacks are taken up again"
    known = {a.key for row in study.strict_config.cuts for a in row.attacks}
    again = [a.key for row in one.strict_config.cuts if not row.swept for a in row.attacks]
    assert again
    assert set(again) <= known, "what is new is the sweep from another answer on"
    assert [(p.number, p.cut) for p in one.points] == [(3, study.points[2].cut)]
    assert one.points[0].cgan_ssim == study.points[2].cgan_ssim
    assert any("later ones were not attacked" in n for n in one.notes)

    paper = replace(study, model="resnet50", published=HEADLINES["resnet50", PHOTOS])
    page = reproduced.markdown([paper], (1, 2, 3), {}, "")
    assert "### Table I: cut points of ResNet-50" in page
    row = next(line for line in page.splitlines() if line.startswith("| 4 | `layer3"))
    assert "**chosen**: 4.02 -> 3.6 s" in row
    summary = next(line for line in page.splitlines() if line.startswith("| ResNet-50 |"))
    assert "5, 4 | 4.02 -> 3.6 s | 10.4%, 1.12x" in summary

    fooled = replace(study.points[1], published_safe=True, strict_status="leaks")
    fooled = replace(study, points=[fooled], chosen=2)
    assert fooled.contradicted == fooled.points
    assert "calls safe what our panel inverts" in reproduced.markdown([fooled], (1,), {}, "")


def test_a_point_goes_by_number_or_name():
    graph = load_model("resnet18", weights="none", input_size=32).trace()
    points = graph.cuts("paper")
    assert (
        module._points_wanted(graph, points, "layer2")
        == module._points_wanted(graph, points, "3")
        == points[2:3]
    )
    for wrong in ("9", "0", "layer1.0"):
        with pytest.raises(UsageError, match="`cut` got"):
            module._points_wanted(graph, points, wrong)


def test_what_cannot_be_reproduced():
    with pytest.raises(UsageError, match="no cut points for MobileNetV2"):
        reproduce("mobilenet_v2", weights="none")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--table", "4"], "`table` got 4; use some of 1, 2, 3"),
        (["--figure", "2"], "`figure` got 2"),
        (["--weights", "a.pth"], "`weights` got 'a.pth' for 3 models"),
        (["--profile", "a.json"], "`profile` got 'a.json' for 3 models"),
        (["--model", "resnet18", "--budget", "huge"], "`budget` got 'huge'"),
    ],
)
def test_wrong_arguments_of_the_command(arguments, told, capsys):
    assert cli.run(["reproduce", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_speed_ups():
    assert share(4.0, 1.0) == 0.75
    assert ratio(4.0, 1.0) == 4.0
    assert share(None, 1.0) is None
    assert ratio(4.0, None) is None
    assert {m for m, _ in HEADLINES} == set(reproduced.TITLES)
    assert HEADLINES["vgg16", PHOTOS].points == 13
