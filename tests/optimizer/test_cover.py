"""Searches in which a cut that was attacked in full stands for later ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from partopt.config import SplitConfig
from partopt.images.load import Split
from partopt.models.load import LoadedModel
from partopt.optimizer import settle, sweep
from partopt.optimizer.budgets import BUDGETS
from partopt.optimizer.find import find, find_cut
from partopt.optimizer.limits import Doubt
from partopt.optimizer.requests import FindRequest
from partopt.preprocessing import Preprocessing
from partopt.reporting.table import swept as sentence

CUTS = ["0", "1", "2", "3", "4", "5", "6"]
SMALL = {"epochs": 1, "width": 8, "narrowest": 8, "blocks": 1, "crops": 0}


@pytest.fixture
def budget(monkeypatch, later_is_slower):
    found = replace(
        BUDGETS["quick"],
        split=Split(64, 16, 24),
        resolution=32,
        minimum_images=20,
        settings={"linear": {"max_cells": 8000}, "decoder": {**SMALL, "epochs": 2, "width": 16}},
        cover=SMALL,
    )
    monkeypatch.setitem(BUDGETS, "quick", found)
    return found


def narrowing() -> LoadedModel:
    """Every layer keeps a quarter of the cells: what can be rebuilt falls from cut to cut."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, padding=1)]
    layers += [layer for _ in range(3) for layer in (nn.AvgPool2d(2), nn.Conv2d(4, 4, 1))]
    return LoadedModel(
        spec="tests:narrowing",
        module=nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3)).eval(),
        weights="random (seed 0)",
        preprocessing=Preprocessing(32, 36, (0.5,) * 3, (0.5,) * 3),
        weights_hash="1" * 64,
    )


def searched(**options):
    return find(narrowing(), cuts=CUTS, ssim=0.9, repetitions=1, **options).config


def test_few_cuts_are_attacked_in_full_and_the_answer_is_that_of_all(budget, monkeypatch):
    config = searched()
    stood_for = [r for r in config.cuts if r.covered_by]
    assert config.cut is not None
    assert stood_for
    for row in stood_for:
        assert {a.attacker for a in row.attacks} == {"linear"}
        assert row.covered_by in CUTS[: CUTS.index(row.name)]
    assert {a.attacker for a in config.privacy.attacks} == {"linear", "decoder"}
    swept = {s.name: {a.attacker for a in s.attacks} for s in config.sweep.cuts}
    for row in stood_for:
        if CUTS.index(row.name) > CUTS.index(config.cut.name):
            assert swept[row.name] == {"sketch", "decoder"}
    assert config.sweep.decoder is not None
    later = [r for r in stood_for if r.name in swept]
    assert f" unsampled cuts and {len(later)} covered ones swept" in sentence(config)
    assert SplitConfig.parse(config.to_json().encode()) == config
    again = searched()
    assert again.search.trials_run == 0, "all of it is stored"
    assert again.cut.name == config.cut.name
    monkeypatch.setitem(BUDGETS, "quick", replace(budget, cover={}))
    every = searched()
    assert every.cut.name == config.cut.name
    assert not any(r.covered_by for r in every.cuts)


def test_a_later_cut_that_may_leak_is_attacked_itself(budget, monkeypatch):
    plain = searched()
    name = next(r.name for r in reversed(plain.cuts) if r.covered_by)
    real, asked = sweep._suspect, []

    def suspect(attacks, held, ahead):
        asked.append(attacks)
        return real(attacks, held, ahead)

    monkeypatch.setattr(sweep, "_suspect", suspect)
    node_of = {r.name: i for i, r in enumerate(plain.cuts)}
    monkeypatch.setattr(
        sweep,
        "bound",
        lambda threshold, lead, proportion: -1.0 if len(asked) == 1 else threshold,
    )
    config = searched()
    rows = {r.name: r for r in config.cuts}
    first = next(r for r in config.cuts if node_of[r.name] > node_of[config.cut.name])
    assert asked
    assert {a.attacker for a in first.attacks} == {"linear", "decoder"}
    assert not first.swept, "it was asked for, and may be the answer"
    assert not first.covered_by
    assert rows[name].status in ("screened", "safe", "undecided")


def test_a_cut_that_stands_for_others_and_falls_takes_them_with_it(budget, monkeypatch):
    plain = searched()
    fallen = plain.cut.name

    def confirm(search, adversary, workers, tell):
        index = search.names.index(fallen)
        search.outcome.doubts[index] = Doubt("it still learns")
        return []

    monkeypatch.setattr(settle, "confirm", confirm)
    config = searched(adversary_images=10_000)
    rows = {r.name: r for r in config.cuts}
    assert rows[fallen].status == "undecided"
    assert config.cut is None or CUTS.index(config.cut.name) > CUTS.index(fallen)
    if config.cut is not None:
        assert {a.attacker for a in rows[config.cut.name].attacks} == {"linear", "decoder"}
        assert not rows[config.cut.name].covered_by


def test_the_answer_is_a_cut_that_was_attacked_in_full(budget):
    found = []

    class Watch:
        def stage(self, text, jobs=None):
            pass

        def progress(self, what, share):
            pass

        def attacked(self, cut, attacker, score, leaks):
            found.append((cut, attacker))

    config = find(narrowing(), cuts=CUTS, ssim=0.9, repetitions=1, watcher=Watch()).config
    assert (config.cut.name, "decoder") in found
    row = next(r for r in config.cuts if r.name == config.cut.name)
    assert not row.covered_by


def test_without_attacks_what_is_stored_is_enough_and_no_less_is(budget):
    config = searched()
    request = FindRequest.of(narrowing(), {"cuts": CUTS, "ssim": 0.9, "repetitions": 1})
    request = replace(request, effort=replace(request.effort, attack=False))
    assert find_cut(request).cut.name == config.cut.name
    assert find_cut(replace(request, seed=7)).cut is None
