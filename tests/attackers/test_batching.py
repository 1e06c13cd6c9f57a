"""A batch in portions: the same attack in less memory; and the decoder's choice of losses."""

from __future__ import annotations

import numpy as np
import pytest

from partopt import testing
from partopt.attackers import batching
from partopt.attackers.base import Context
from partopt.attackers.pairs import Pairs
from partopt.attackers.panel import make
from partopt.attackers.scoring import ssim_of
from partopt.errors import AttackError, UsageError

SMALL = {
    "decoder": {
        "epochs": 2,
        "width": 24,
        "narrowest": 12,
        "batch": 8,
        "linear": make("linear", {"max_cells": 20_000}),
    },
    "cgan": {"epochs": 2, "width": 16, "batch": 8, "l1_weight": 100.0, "lr": 2e-3},
}


def test_portions_cover_a_batch_in_order():
    index = np.arange(10)
    assert [len(p) for p in batching.portions(index, 1)] == [10]
    pieces = batching.portions(index, batching.LARGEST // 4)
    assert [len(p) for p in pieces] == [4, 4, 2]
    assert np.array_equal(np.concatenate(pieces), index)
    assert [len(p) for p in batching.portions(index, batching.LARGEST * 9)] == [1] * 10


@pytest.mark.parametrize("name", SMALL)
def test_portions_give_the_same_attack(name, monkeypatch):
    where = testing.arena(testing.convolutions())
    whole = testing.attack(lambda: make(name, SMALL[name]), where)
    monkeypatch.setattr(batching, "LARGEST", 1)  # an image at a time
    assert testing.attack(lambda: make(name, SMALL[name]), where) == pytest.approx(whole, abs=0.01)


def fit(losses, head=True):
    where = testing.arena(testing.convolutions())
    f, i = where.features, where.images
    a, b = testing.TRAIN, testing.TRAIN + testing.VALIDATION
    decoder = make("decoder", {**SMALL["decoder"], "losses": losses})
    context = Context(0, input_size=testing.SIDE, head=where.head if head else None)
    decoder.fit(Pairs.of((f[:a], i[:a]), (f[a:b], i[a:b])), context)
    return decoder, float(ssim_of(decoder.reconstruct, f[a:b], i[a:b]).mean())


def test_the_loss_that_rebuilds_validation_images_best_is_kept():
    scores = {loss: fit((loss,))[1] for loss in ("ssim+l1", "perceptual")}
    both, value = fit(("ssim+l1", "perceptual"))
    assert both.loss == max(scores, key=scores.get)
    assert value == pytest.approx(max(scores.values()), abs=2e-3)


def test_wrong_losses_are_refused():
    with pytest.raises(UsageError, match=r"`losses` got lpips; use some of ssim\+l1, perceptual"):
        fit(("lpips",))
    with pytest.raises(UsageError, match="`losses`"):
        fit(())
    with pytest.raises(AttackError, match="public head"):
        fit(("perceptual",), head=False)
