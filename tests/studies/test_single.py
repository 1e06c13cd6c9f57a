import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from partopt.attackers import panel as registry
from partopt.attackers.base import as_images
from partopt.attackers.linear import Linear
from partopt.attackers.scoring import ssim
from partopt.errors import AttackError, CutError, UsageError
from partopt.images.dead_leaves import dead_leaves
from partopt.images.load import Split
from partopt.optimizer.budgets import BUDGETS
from partopt.reporting.attacked import as_dict, table
from partopt.studies.single import SHOWN, attack_cut

NET = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.Tanh(), nn.Conv2d(8, 12, 4, 4), nn.Tanh(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))
"""


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    (tmp_path / "singlenet.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    few = {"steps": 3, "tvs": (0.0,), "distances": ("l2",), "tuning_images": 4}
    budget = replace(
        BUDGETS["quick"],
        split=Split(48, 8, 12),
        resolution=32,
        minimum_images=20,
        settings={"linear": {"max_cells": 4000}},
        others={"rmle": {**few, "restarts": 2}},
    )
    monkeypatch.setitem(BUDGETS, "quick", budget)
    return {"model": "singlenet:net", "cut": "3", "weights": "none", "input_size": 32}


def test_the_panel_on_one_cut(arguments, tmp_path):
    found = attack_cut(**arguments, attackers=["linear", "rmle"])
    assert [r.attacker for r in found.results] == ["linear", "rmle"]
    best = max(r.score.value for r in found.results)
    assert found.strongest.score.value == best
    for result in found.results:
        assert 0 <= result.score.raw <= 1
        assert result.psnr > 5
        assert result.ms_ssim is None, "too small for it"
    data = json.loads(json.dumps(as_dict(found), allow_nan=False))
    assert data["strongest"] == found.strongest.attacker
    assert table(found) is not None
    found.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as page:
        assert page.size == (120 + SHOWN * 32, 3 * 32)


def test_pictures_of_ones_own_are_rebuilt_and_not_scored(arguments, tmp_path):
    plain = attack_cut(**arguments, attackers=["linear"])
    folder = tmp_path / "mine"
    folder.mkdir()
    dark, bright = (
        dead_leaves(2, 40, seed=9) // 2 + np.array([0, 127], np.uint8)[:, None, None, None]
    )
    for name, image in (("b", bright), ("a", dark)):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{name}.png")
    found = attack_cut(**arguments, attackers=["linear"], show=folder)
    assert found.results[0].score == plain.results[0].score
    assert found.originals.shape == found.results[0].rebuilt.shape == (2, 3, 32, 32)
    likeness = ssim(found.results[0].rebuilt, as_images(found.originals))
    assert float(likeness.mean()) > float(
        ssim(found.results[0].rebuilt.flip(0), as_images(found.originals)).mean()
    )
    assert found.originals[0].mean() < found.originals[1].mean(), "by name"


def test_pictures_that_cannot_be_shown(arguments, tmp_path):
    with pytest.raises(UsageError, match="which is no folder"):
        attack_cut(**arguments, attackers=["linear"], show=tmp_path / "nowhere")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match="without a usable image"):
        attack_cut(**arguments, attackers=["linear"], show=tmp_path / "bad")


def test_a_failure_is_said_and_nothing_stands_for_it(arguments, monkeypatch):
    class Broken(Linear):
        name = "linear"

        def fit(self, *args, **kwargs):
            raise AttackError("diverged")

    monkeypatch.setitem(registry.ATTACKERS, "linear", Broken)
    found = attack_cut(**arguments, attackers=["linear"])
    assert found.results[0].score is None
    assert found.results[0].note == "failed: diverged"
    assert found.strongest is None


def test_an_unknown_cut(arguments):
    with pytest.raises(CutError, match="nope"):
        attack_cut(**{**arguments, "cut": "nope"})
