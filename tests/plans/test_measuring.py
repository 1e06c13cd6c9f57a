from __future__ import annotations

import pytest

from partopt.blinded.engine import Engine
from partopt.blinded.outside import Worker
from partopt.plans.measuring import Setting, measure
from partopt.plans.network import depthwise


def test_every_placement_of_every_block_has_its_time(made):
    names = [n for b in made.blocks for n in made.network.blindable(b, depthwise)]
    layers = [made.network.layers[n].layer for n in names]
    engine = Engine(layers, Worker(layers))
    carried = []

    def handoff(size):
        carried.append(size)
        return 1000.0

    setting = Setting(handoff, lambda block, ms: ms / 2, repetitions=2, skip=depthwise)
    costs = measure(made.network, made.blocks, engine, made.images[:1], setting)
    assert costs.crossing == (1000.0,) * 8
    for block, cost in zip(made.blocks, costs.blocks, strict=True):
        blind = made.network.blindable(block, depthwise)
        assert 0 < cost.enclave < 1000
        assert cost.clear == pytest.approx(cost.enclave / 2)
        assert (cost.blinded is None) == (not blind)
        if blind:
            ways = 2 * len(blind)
            assert 1000 * ways < cost.blinded < 1000 * (ways + 1), "each layer out and back"
            assert cost.factors > 0
            assert 0 < cost.inside < cost.blinded - 1000 * ways
    assert engine.counts.requests == 3
    assert made.images[:1].nbytes in carried
    assert 4 * 10 in carried, "the answer's way back"
    # What enters the residual block: 8 channels of 8x8; blinded, it crosses as well.
    assert carried.count(4 * 8 * 8 * 8) >= 3
