"""`check` on real weights: replaced ones that leak are caught, retrained ones that hold pass."""

from __future__ import annotations

import pytest
import torch

from partopt.images.load import Split
from partopt.models.load import load_model
from partopt.optimizer.budgets import BUDGETS, Budget
from partopt.optimizer.check import check
from partopt.optimizer.find import find
from partopt.optimizer.policy import Policy

pytestmark = pytest.mark.shared_data

SMALL = Budget(
    "quick",
    "screening",
    Split(160, 32, 48),
    64,
    100,
    {
        "linear": {"max_cells": 20_000, "max_terms": 1300},
        "decoder": {"epochs": 2, "width": 32, "narrowest": 16, "blocks": 1, "batch": 8},
    },
)
CUTS = ["features.3", "features.16", "features.18"]


@pytest.mark.slow
def test_replaced_and_retrained_weights(shared, tmp_path, monkeypatch):
    monkeypatch.setitem(BUDGETS, "quick", SMALL)
    photos = shared / "imagenet-val"
    path = shared / "weights" / "mobilenet_v2.pth"
    real = load_model("mobilenet_v2", weights=str(path), mean=[0.5], std=[0.5])
    result = find(real, ssim=0.12, data=photos, cuts=CUTS)
    assert result.cut.name == "features.16.add"
    split = tmp_path / "mobilenet_v2.split.json"
    result.config.write(split)

    policy = Policy(ssim=0.12, data=str(photos), mean=[0.5], std=[0.5], cuts=CUTS)
    unchanged = check(split, policy=policy, weights=str(path), latency=False)
    assert unchanged.found.config.search.trials_run == 0
    assert {p.name: p.what for p in unchanged.properties}["privacy"] == "holds"

    state = real.module.state_dict()
    untrained = load_model("mobilenet_v2", weights="none").module.state_dict()
    torch.save(untrained, tmp_path / "untrained.pth")
    leaking = check(split, policy=policy, weights=str(tmp_path / "untrained.pth"), latency=False)
    assert leaking.exit_code == 4, leaking.properties
    assert leaking.found.config.search.trials_run <= 2

    torch.manual_seed(0)
    retrained = {
        k: v + 0.02 * v.std() * torch.randn_like(v) if v.ndim == 4 else v for k, v in state.items()
    }
    torch.save(retrained, tmp_path / "retrained.pth")
    holding = check(split, policy=policy, weights=str(tmp_path / "retrained.pth"), latency=False)
    assert holding.exit_code == 0, holding.properties
    assert holding.found is not None
