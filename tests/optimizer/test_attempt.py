"""One attack gives one number, whoever asks for it and whatever ran before."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from partopt.attackers.base import Context, fit_member
from partopt.attackers.decoder import Decoder
from partopt.attackers.features import FeatureStore
from partopt.attackers.linear import Linear
from partopt.attackers.panel import make
from partopt.errors import AttackError, StorageError
from partopt.images.load import Split, load_images
from partopt.optimizer.attempt import (
    Bench,
    Failed,
    Reached,
    Wish,
    attempt,
    attempt_twice,
    attempt_until_settled,
)
from partopt.optimizer.budgets import BUDGETS
from partopt.optimizer.find import find
from partopt.optimizer.floor import floors_of
from partopt.optimizer.pairs import pairs_at
from partopt.optimizer.rule import Evidence, Grant, judge
from partopt.optimizer.stored import StoredAttack
from partopt.studies.single import attack_cut
from partopt.studies.strength import strength

FEW = {"steps": 3, "tvs": (0.0,), "distances": ("l2",), "tuning_images": 4}
TINY = {"epochs": 1, "width": 8, "narrowest": 8, "blocks": 1}
NET = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.Tanh(), nn.Conv2d(8, 12, 4, 4), nn.Tanh(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))
"""


@pytest.fixture
def bench(tiny_loaded, tmp_path):
    graph = tiny_loaded.trace()
    images = load_images(None, tiny_loaded.preprocessing, Split(40, 10, 12))
    store = FeatureStore(tmp_path / "f", graph, tiny_loaded.preprocessing, images, "w")
    return Bench(store=store, floors=floors_of(images, 32, (32, 16), 0), seed=7)


@pytest.fixture
def cut(bench):
    return bench.store.graph.cuts("all")[2]


def test_what_ran_before_changes_no_result(bench, cut):
    """`rmle` alone learns from plain images, `ensemble` from mirrored ones too."""
    rmle = make("rmle", FEW)
    hybrid = make("hybrid", {**FEW, "decoder": make("decoder", TINY)})
    ensemble = make("ensemble", {**FEW, "hybrid": hybrid, "rmle": rmle})
    alone = attempt(bench, cut, ensemble)
    fitted = {}
    for before in (rmle, make("decoder", TINY), hybrid):
        attempt(bench, cut, before, Wish(fitted=fitted))
    after = attempt(bench, cut, ensemble, Wish(fitted=fitted))
    for side in bench.sides:
        assert np.array_equal(alone.per_side[side], after.per_side[side])
    assert after.own_steps < alone.own_steps, "the decoder was taken as fitted"


def test_pairs_are_told_apart_by_what_they_hold(bench, cut):
    plain, mirrored = make("rmle", FEW), make("decoder", TINY)

    def key(attacker, cut=cut, most=None):
        return pairs_at(cut, attacker, bench.store, bench.pictures, most=most)[0].key

    other = bench.store.graph.cuts("all")[3]
    keys = [key(plain), key(mirrored), key(plain, most=20), key(plain, other)]
    assert len(set(keys)) == len(keys)
    assert key(plain) == key(Linear())


def test_a_member_is_taken_as_fitted_only_from_the_same_pairs_and_seed(bench, cut):
    linear = Linear(max_cells=2000)
    pairs, _ = pairs_at(cut, linear, bench.store, bench.pictures)
    fewer, _ = pairs_at(cut, linear, bench.store, bench.pictures, most=20)
    context = Context(seed=1)
    first = fit_member(linear, pairs, context)
    context.keep(repr(linear), pairs, first, 0.0)
    assert fit_member(linear, pairs, context) is first
    assert fit_member(linear, fewer, context) is not first
    assert fit_member(linear, pairs, replace(context, seed=2)) is not first


def test_one_seed_gives_one_number_in_every_command(tmp_path, monkeypatch):
    (tmp_path / "seednet.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = {"linear": {"max_cells": 4000}, "decoder": TINY}
    small = replace(
        BUDGETS["quick"],
        split=Split(48, 8, 12),
        resolution=32,
        minimum_images=20,
        settings=settings,
    )
    monkeypatch.setitem(BUDGETS, "quick", small)
    given = {"weights": "none", "input_size": 32, "seed": 7}
    attackers = list(settings)
    one = attack_cut("seednet:net", "3", attackers=attackers, **given)
    two = strength("seednet:net", "3", attackers=attackers, images=[48], epochs=[1], **given)
    three = find(
        "seednet:net", cuts=["3"], attackers=attackers, exhaustive=True, repetitions=1, **given
    )
    for result, cell, found in zip(
        one.results, two.cells, three.config.cuts[0].attacks, strict=True
    ):
        assert result.score == cell.score
        assert (found.score, found.low, found.high) == (
            result.score.value,
            result.score.low,
            result.score.high,
        )


class Broken(Linear):
    error: Exception = AttackError("diverged\nsomewhere deep")

    def fit(self, pairs, context):
        raise type(self).error


class Nan(Linear):
    def reconstruct(self, features):
        return torch.full((len(features), 3, 32, 32), float("nan"))


@pytest.mark.parametrize("attacker", [Broken(), Nan()])
def test_what_fails_has_no_score(bench, cut, attacker):
    with pytest.raises(Failed) as failure:
        attempt(bench, cut, attacker)
    assert "\n" not in str(failure.value)


def test_a_full_disk_is_no_failed_attack(bench, cut, monkeypatch):
    monkeypatch.setattr(Broken, "error", StorageError("the disk is full"))
    with pytest.raises(StorageError):
        attempt_twice(bench, cut, Broken())


class Careless(Decoder):
    """Diverges at the learning rate that it was given."""

    def fit(self, pairs, context):
        if self.lr > 1e-3:
            raise AttackError("diverged")
        super().fit(pairs, context)


def test_a_second_try_is_made_with_safer_settings(bench, cut):
    careless = Careless(**TINY, lr=2e-3)
    reached, notes = attempt_twice(bench, cut, careless)
    assert notes == ["failed: diverged"]
    assert isinstance(reached, Reached)
    assert reached.settings == repr(careless.safer())
    assert attempt_twice(bench, cut, Broken())[1] == ["failed: diverged"]


def test_an_attack_is_read_as_it_was_written(bench, cut):
    reached = attempt(bench, cut, Linear(max_cells=2000))
    stored = StoredAttack.of(reached, "0" * 64)
    for key in ("key", "tuned"):
        again = StoredAttack.from_attrs(stored.to_attrs(key), bench.floors, key)
        assert again is not None
        assert again.per_side.keys() == stored.per_side.keys() == {32, 16}
        for side, values in stored.per_side.items():
            assert np.array_equal(again.per_side[side], values)
        assert replace(again, per_side=stored.per_side) == stored
    attrs = stored.to_attrs()
    fewer = {side: floor[:-1] for side, floor in bench.floors.items()}
    assert StoredAttack.from_attrs(attrs, fewer) is None, "another number of images"
    more = {**bench.floors, 64: bench.floor}
    assert StoredAttack.from_attrs(attrs, more) is None, "a side that was not looked at"
    for name in attrs:
        without = {k: v for k, v in attrs.items() if k != name}
        assert StoredAttack.from_attrs(without, bench.floors) is None
    for wrong in ([2.0] * 12, [float("nan")] * 12, ["x"] * 12):
        bad = {**attrs, "ssim_per_side": {**attrs["ssim_per_side"], "16": wrong}}
        assert StoredAttack.from_attrs(bad, bench.floors) is None


def test_what_can_only_be_seen_scaled_down_is_a_leak(bench, cut):
    """Noise on every pixel hides a picture at its own size, and averages away at half of it."""

    class Noisy(Linear):
        def fit(self, pairs, context):
            truth = bench.pictures[slice(*bench.store.images.bounds("test"))]
            generator = torch.Generator().manual_seed(0)
            self.found = torch.from_numpy(truth).float() / 255
            self.found += 0.35 * torch.randn(self.found.shape, generator=generator)
            self.at = 0

        def reconstruct(self, features):
            start, self.at = self.at, self.at + len(features)
            return self.found[start : self.at].clamp(0, 1)

    reached = attempt(bench, cut, Noisy())
    by_side = reached.scores.by_side
    assert by_side[16].value > by_side[32].value + 0.1
    assert reached.score.value == by_side[16].value
    threshold = (by_side[16].low + by_side[32].high) / 2
    shown = StoredAttack.of(reached, "0" * 64).shown("linear", bench, threshold)
    evidence = {(0, "linear"): Evidence.of(shown, "corrected")}
    (verdict,) = judge(["cut"], ["linear"], evidence, threshold)
    assert verdict.status == "leaks"
    assert shown.retrieved == 12, "each picture is picked out of all"
    assert shown.over >= 10


class Learning(Linear):
    """Better with each epoch, and still rising below `enough` of them."""

    enough: ClassVar[int] = 4
    ran: ClassVar[list[int]] = []

    def __init__(self, epochs: int = 1) -> None:
        super().__init__(max_cells=2000)
        self.epochs = epochs

    def settings(self):
        return {"epochs": self.epochs}

    def longer(self, times):
        return Learning(self.epochs * times)

    def fit(self, pairs, context):
        self.ran.append(self.epochs)
        context.image_steps += 10 * self.epochs
        super().fit(pairs, context)

    @property
    def still_rising(self):
        return self.epochs < self.enough


@pytest.mark.parametrize(
    ("enough", "ceiling", "threshold", "ran", "rising"),
    [
        (4, 4, 2.0, [1, 2, 4], False),
        (64, 4, 2.0, [1, 2, 4], True),
        (4, 1, 2.0, [1], True),
        (4, 4, 0.0, [1], True),
    ],
)
def test_what_is_still_rising_goes_on_up_to_a_ceiling(
    bench, cut, monkeypatch, enough, ceiling, threshold, ran, rising
):
    monkeypatch.setattr(Learning, "enough", enough)
    monkeypatch.setattr(Learning, "ran", [])
    found = attempt_until_settled(bench, cut, Learning(), Wish(), ceiling, threshold)
    assert Learning.ran == ran
    assert found.rising is rising
    fits = 40 * len(ran)  # what the linear attacker underneath counts
    assert found.own_steps == 10 * sum(ran) + fits


def test_a_cut_where_an_attack_is_still_rising_is_undecided(bench, cut, monkeypatch):
    monkeypatch.setattr(Learning, "enough", 64)
    reached = attempt_until_settled(bench, cut, Learning(), Wish(), 2, 2.0)
    shown = StoredAttack.of(reached, "0" * 64).shown("linear", bench, 0.99)
    assert shown.rising
    evidence = {(i, "linear"): Evidence.of(shown, "corrected") for i in range(2)}
    settled = {job: replace(e, rising="") for job, e in evidence.items()}
    mixed = {(0, "linear"): settled[0, "linear"], (1, "linear"): evidence[1, "linear"]}
    for given, wanted in ((evidence, "undecided"), (mixed, "undecided"), (settled, "safe")):
        first = judge(["a", "b"], ["linear"], given, 0.99)[0]
        assert first.status == wanted
    reason = judge(["a", "b"], ["linear"], mixed, 0.99)[0].reason
    assert reason == "linear at b was still rising when its budget ended: counts as leaking"
    screened = judge(["a", "b"], ["linear"], mixed, 0.99, Grant("screened", "a screening"))
    assert screened[0].status == "screened"


def test_a_longer_training_that_scores_lower_takes_nothing_back(bench, cut, monkeypatch):
    class Unlucky(Learning):
        def longer(self, times):
            return Unlucky(self.epochs * times)

        def reconstruct(self, features):
            rebuilt = super().reconstruct(features)
            return rebuilt if self.epochs == 1 else torch.full_like(rebuilt, 0.5)

    first = attempt(bench, cut, Unlucky())
    found = attempt_until_settled(bench, cut, Unlucky(), Wish(), 4, 2.0)
    assert found.score == first.score
    assert found.score.high > 0
    assert found.rising, "so it is not settled"
