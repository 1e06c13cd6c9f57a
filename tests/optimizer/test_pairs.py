"""What attackers are given: every feature map beside the picture that it is of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from partopt.attackers import panel as registry
from partopt.attackers.base import Attacker
from partopt.attackers.rows import as_rows
from partopt.images.load import Split
from partopt.optimizer.budgets import BUDGETS
from partopt.studies.single import attack_cut

SPLIT = Split(48, 8, 12)
NET = """
from torch import nn
def net():
    made = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Flatten(), nn.Linear(3072, 2))
    nn.init.dirac_(made[0].weight)
    return made
"""


@dataclass(repr=False)
class Recorder(Attacker):
    """Keeps what it is given. The head gives the image away: one line a channel rebuilds it."""

    name: ClassVar[str] = "recorder"
    augments: ClassVar[bool] = True
    given: ClassVar[dict[str, np.ndarray]] = {}
    crops: int = 1
    _line: np.ndarray | None = field(default=None, init=False)

    def fit(self, pairs, context):
        parts = {
            "train": (pairs.features, pairs.images),
            "held out": (pairs.held_out, pairs.held_out_images),
        }
        for part, (maps, pictures) in parts.items():
            for name, rows in (("maps", maps), ("pictures", as_rows(pictures))):
                whole = rows.take(range(len(rows))).astype(float)
                self.given[f"{part} {name}"] = whole
        x, y = self.given["held out maps"], self.given["held out pictures"] / 255
        self._line = np.array([np.polyfit(x[:, c].ravel(), y[:, c].ravel(), 1) for c in range(3)])

    def reconstruct(self, features):
        slope, offset = self._line.T[:, None, :, None, None]
        return torch.from_numpy((features * slope + offset).clip(0, 1)).float()


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """The head that gives the image away, attacked by the recorder."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "opennet.py").write_text(NET)
    budget = replace(BUDGETS["quick"], split=SPLIT, resolution=32, minimum_images=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PARTOPT_CACHE", str(folder / "cache"))
        patch.setitem(BUDGETS, "quick", budget)
        patch.setitem(registry.ATTACKERS, "recorder", Recorder)
        return attack_cut("opennet:net", "0", weights="none", input_size=32, attackers=["recorder"])


def likeness(maps: np.ndarray, pictures: np.ndarray) -> float:
    """The least correlation of a map with its picture, over pairs."""
    pairs = zip(maps, pictures, strict=True)
    return min(np.corrcoef(m.ravel(), p.ravel())[0, 1] for m, p in pairs)


@pytest.mark.parametrize("part", ["train", "held out"])
def test_every_map_lies_beside_its_picture(attacked, part):
    assert likeness(Recorder.given[f"{part} maps"], Recorder.given[f"{part} pictures"]) > 0.9


def test_test_maps_are_scored_against_their_own_pictures(attacked):
    assert attacked.results[0].score.raw > 0.98


def test_mirrored_images_and_crops_come_in_addition_to_the_plain_ones(attacked):
    plain, mirrored, cropped = np.split(Recorder.given["train pictures"], 3)
    assert len(plain) == SPLIT.train
    assert np.array_equal(mirrored, plain[..., ::-1])
    assert not (cropped == plain).all((1, 2, 3)).any()
    assert all(np.isin(c, p).mean() > 0.3 for c, p in zip(cropped, plain, strict=True))


def test_no_image_that_is_scored_was_seen_before(attacked):
    given = [*Recorder.given["train pictures"], *Recorder.given["held out pictures"]]
    seen = {picture.astype(np.uint8).tobytes() for picture in given}
    assert len(seen) == 3 * SPLIT.train + SPLIT.validation
    scored = [picture.tobytes() for picture in attacked.originals]
    assert scored
    assert not seen & set(scored)
