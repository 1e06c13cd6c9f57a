"""One attack gives one number, whoever asks for it and whatever ran before."""

from __future__ import annotations

from dataclasses import replace

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
from partopt.optimizer.attempt import Bench, Failed, Reached, Wish, attempt, attempt_twice
from partopt.optimizer.budgets import BUDGETS
from partopt.optimizer.find import find
from partopt.optimizer.floor import floor_of
from partopt.optimizer.pairs import pairs_at
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
    return Bench(store=store, floor=floor_of(images, 32, 0), resolution=32, seed=7)


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
    assert np.array_equal(alone.per_image, after.per_image)
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
        again = StoredAttack.from_attrs(stored.to_attrs(key), 12, key)
        assert again is not None
        assert np.array_equal(again.per_image, stored.per_image)
        assert replace(again, per_image=stored.per_image) == stored
    attrs = stored.to_attrs()
    assert StoredAttack.from_attrs(attrs, 11) is None, "another number of images"
    for name in attrs:
        assert StoredAttack.from_attrs({k: v for k, v in attrs.items() if k != name}, 12) is None
    for wrong in ([2.0] * 12, [float("nan")] * 12, ["x"] * 12):
        assert StoredAttack.from_attrs({**attrs, "ssim_per_image": wrong}, 12) is None
