"""White-box descent where the head sees more pixels than are scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from partopt import testing
from partopt.attackers.base import Context
from partopt.attackers.inversion import _Picture, resized
from partopt.attackers.pairs import Pairs
from partopt.attackers.panel import make
from partopt.attackers.scoring import ssim_of
from partopt.images.dead_leaves import dead_leaves
from partopt.images.load import at_resolution

FEW = {
    "steps": 60,
    "lr": 0.05,
    "tvs": (0.003,),
    "distances": ("l2",),
    "tuning_images": 8,
    "batch": 16,
    "restarts": 1,
}


@pytest.fixture(scope="module")
def setting():
    """Images of 64 pixels for the head, pictures of 32 to score."""
    images = dead_leaves(48, 64, seed=5)
    head = testing.convolutions()
    with torch.no_grad():
        maps = head(torch.from_numpy(images).float() / 255).half().numpy()
    return head, maps, at_resolution(images, 32)


def attacked(setting, sizes: tuple[str, ...]):
    head, maps, pictures = setting
    attacker = make("rmle", {**FEW, "sizes": sizes, "levels": ((0,),)})
    context = Context(0, head=head, input_size=64)
    held = (maps[16:24], pictures[16:24])
    attacker.fit(Pairs.of((maps[:16], pictures[:16]), held), context)
    assert attacker.reconstruct(maps[24:26]).shape == (2, 3, 32, 32)
    return attacker, float(ssim_of(attacker.reconstruct, *held).mean())


def test_the_size_that_rebuilds_validation_images_best_is_chosen(setting):
    alone = {size: attacked(setting, (size,))[1] for size in ("scored", "input")}
    assert abs(alone["scored"] - alone["input"]) > 0.02, "they are two attacks"
    both, value = attacked(setting, ("scored", "input"))
    assert both.objective.size == max(alone, key=alone.get)
    assert value == pytest.approx(max(alone.values()), abs=1e-3)


def test_both_sizes_are_the_default():
    for name in ("rmle", "hybrid", "ensemble"):
        assert set(make(name).sizes) == {"scored", "input"}


def test_levels_are_one_picture_until_it_moves():
    start = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    for levels in ((0,), (0, 2, 4), (2, 3)):
        picture = _Picture(start, levels)
        assert torch.equal(picture(), start)
        assert [p.shape[-1] for p in picture.parts] == [20 >> level for level in levels]
        with torch.no_grad():
            picture.parts[-1] += 0.7
        assert torch.allclose(picture(), start + 0.7, atol=1e-5)
        picture.pull_inside()
        inside = float(picture().detach().max()) <= 1.0 + 1e-5
        assert inside == (0 in levels), "only the finest level can take back single pixels"


def test_the_levels_that_rebuild_validation_images_best_are_chosen(setting):
    head, maps, pictures = setting
    held = (maps[16:24], pictures[16:24])
    values = {}
    for levels in (((0,),), ((2, 3, 4),), ((0,), (2, 3, 4))):
        attacker = make("rmle", {**FEW, "sizes": ("input",), "levels": levels})
        attacker.fit(
            Pairs.of((maps[:16], pictures[:16]), held), Context(0, head=head, input_size=64)
        )
        values[levels] = float(ssim_of(attacker.reconstruct, *held).mean())
        chosen = attacker.objective.levels
    alone = list(values.values())[:2]
    assert abs(alone[0] - alone[1]) > 0.02, "they are two attacks"
    assert chosen == list(values)[int(alone[1] > alone[0])][0]
    assert list(values.values())[2] == pytest.approx(max(alone), abs=1e-3)


def test_scaling_down_is_how_pictures_are_made():
    images = dead_leaves(2, 64, seed=1)
    unit = torch.from_numpy(images).float() / 255
    small = (resized(unit, 32) * 255).round().numpy().astype(np.uint8)
    assert np.array_equal(small, at_resolution(images, 32))
