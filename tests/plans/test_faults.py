from __future__ import annotations

import pytest
import torch

from partopt.errors import UsageError
from partopt.plans.deadline import risk_of
from partopt.plans.faults import flipped, injected_risk, sensitivities
from partopt.plans.placement import Plan


def test_one_bit_of_one_value_in_each_image_that_is_hit():
    values = torch.randn(200, 3, 4)
    hit = torch.arange(200) % 2 == 0
    found = flipped(values, hit, torch.Generator().manual_seed(0))
    changed = values.view(torch.int32) ^ found.view(torch.int32)
    assert not changed[~hit].any()
    assert (changed[hit].flatten(1) != 0).sum(1).eq(1).all()
    bits = changed[changed != 0].to(torch.int64) & 0xFFFFFFFF
    assert all(int(b).bit_count() == 1 for b in bits)
    assert len(set(bits.tolist())) > 20, "any of the 32, the sign among them"


def test_sensitivities_are_shares_and_found_again(made):
    images = made.images.repeat(6, 1, 1, 1)
    found = sensitivities(made.graph.module, made.blocks, images)
    assert len(found) == len(made.blocks)
    assert all(0 <= s <= 1 for s in found)
    assert found[-1] > 0.01, "a large flip in the scores themselves changes the class"
    assert sensitivities(made.graph.module, made.blocks, images) == found


def test_a_plan_under_faults_in_the_whole_network(made):
    images = made.images.repeat(6, 1, 1, 1)
    module, blocks = made.graph.module, made.blocks
    inside = Plan(("enclave",) * 7)
    assert injected_risk(module, blocks, inside, images, 1.0) == 0
    last = Plan(("blinded",) * 6 + ("clear",))
    assert injected_risk(module, blocks, last, images, 0.0) == 0
    sensitive = sensitivities(module, blocks, images, seed=1)
    alone = injected_risk(module, blocks, last, images, 1.0, seed=2)
    assert alone == pytest.approx(risk_of(last, sensitive), abs=0.15)
    both = Plan(("clear",) * 7)
    assert injected_risk(module, blocks, both, images, 1.0) >= alone - 0.05
    with pytest.raises(UsageError, match="`probability` got 2"):
        injected_risk(module, blocks, last, images, 2)
