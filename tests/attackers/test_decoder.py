"""The decoder: grids, its start, its share of the answer, averaged weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from partopt import testing
from partopt.attackers.base import Context
from partopt.attackers.decoder import NEARLY, Decoder
from partopt.attackers.decoder_net import InverseNet, Layout
from partopt.attackers.linear import Linear
from partopt.attackers.pairs import Pairs
from partopt.attackers.rows import Rows
from partopt.attackers.scoring import ssim_of
from partopt.attackers.training import follow, mean_image, warm_cosine
from partopt.errors import UsageError

LINEAR = Linear(max_cells=4000)
SMALL = {"epochs": 1, "width": 16, "narrowest": 8, "blocks": 1, "batch": 8, "linear": LINEAR}


def layout(cells: tuple[int, int], side: int, channels: int = 5) -> Layout:
    return Layout(channels, cells, side, width=192, blocks=1, narrowest=8)


@pytest.mark.parametrize(
    ("cells", "side", "grids"),
    [
        ((7, 7), 96, [(7, 7), (14, 14), (28, 28), (48, 48)]),
        ((13, 13), 96, [(13, 13), (26, 26), (48, 48)]),
        ((28, 28), 96, [(28, 28), (48, 48)]),
        ((56, 56), 96, [(56, 56)]),
        ((7, 14), 96, [(7, 14), (14, 28), (48, 48)]),
        ((1, 1), 96, [(4, 4), (8, 8), (16, 16), (32, 32), (48, 48)]),
        ((224, 224), 224, [(112, 112)]),
        ((224, 224), 96, [(56, 56)]),
        ((7, 7), 224, [(7, 7), (14, 14), (28, 28), (56, 56), (112, 112)]),
    ],
)
def test_the_first_grid_is_the_maps_own_and_no_step_is_finer_than_it_need_be(cells, side, grids):
    assert layout(cells, side).grids() == grids


def test_cells_finer_than_half_the_picture_become_channels_none_is_lost():
    fine = layout((9, 8), 6, channels=2)
    assert fine.fold == (3, 3)
    assert fine.grids() == [(3, 3)]
    net = InverseNet(fine, sees_first=False)
    maps = torch.arange(2 * 9 * 8).float().view(1, 2, 9, 8)
    folded = net._gridded(maps)
    assert folded.shape == (1, 18, 3, 3)
    assert set(maps.flatten().tolist()) <= set(folded.flatten().tolist())
    # The cells of one place stay together: rows 3 to 5, columns 0 to 2 of channel 0.
    assert folded[0, :9, 1, 0].tolist() == maps[0, 0, 3:6, 0:3].flatten().tolist()


@pytest.mark.parametrize("side", [33, 48])
@pytest.mark.parametrize("cells", [(1, 1), (5, 9), (60, 60)])
def test_a_fresh_network_leaves_the_picture_it_starts_from(cells, side):
    maps, first = torch.randn(2, 5, *cells), torch.rand(2, 3, side, side)
    net = InverseNet(layout(cells, side), sees_first=True).eval()
    assert torch.equal(net(maps, first), first)


def fitted(head, **settings) -> tuple[Decoder, testing.Arena]:
    where = testing.arena(head)
    a, b = testing.TRAIN, testing.TRAIN + testing.VALIDATION
    decoder = Decoder(**{**SMALL, **settings})
    f, i = where.features, where.images
    decoder.fit(Pairs.of((f[:a], i[:a]), (f[a:b], i[a:b])), Context(0))
    return decoder, where


def blurred(unit: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(unit, 16).relu()


def test_it_starts_from_the_linear_picture_only_where_that_is_nearly_the_image():
    near, _ = fitted(testing.convolutions())
    far, _ = fitted(blurred)
    assert near.history[0] >= NEARLY > far.history[0]
    assert (near.started, far.started) == ("linear", "mean")
    assert fitted(blurred, start="linear")[0].started == "linear"
    with pytest.raises(UsageError, match="`start` got noise; use some of auto, linear, mean"):
        fitted(blurred, start="noise")


def test_a_network_that_learned_nothing_gives_way_to_the_linear_picture():
    decoder, where = fitted(testing.identity, start="mean", lr=1e-9)
    held = slice(testing.TRAIN, testing.TRAIN + testing.VALIDATION)
    assert decoder.share == 0
    f = where.features[held]
    assert torch.equal(decoder.reconstruct(f), decoder.linear.reconstruct(f))
    decoder.share = 0.5
    mixed = ssim_of(decoder.reconstruct, f, where.images[held]).mean()
    decoder.share = 0.0
    assert mixed < ssim_of(decoder.reconstruct, f, where.images[held]).mean()


def test_weights_and_running_statistics_are_averaged():
    old, new = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)
    with torch.no_grad():
        new.weight.fill_(3.0)
        new.running_mean.fill_(2.0)
    new.num_batches_tracked.fill_(7)
    follow(old, new, 0.75)
    assert old.weight.tolist() == [1.5, 1.5]
    assert old.running_mean.tolist() == [0.5, 0.5]
    assert int(old.num_batches_tracked) == 7


def test_the_mean_image_and_the_rate():
    images = np.random.default_rng(0).integers(0, 256, (70, 3, 4, 4), dtype=np.uint8)
    expected = torch.from_numpy(images).double().mean(0, keepdim=True) / 255
    assert torch.allclose(mean_image(Rows([images])), expected.float(), atol=1e-6)
    rate = warm_cosine(1000)
    assert rate(0) == pytest.approx(0.01)
    assert rate(99) == rate(100) == 1
    assert rate(1000) == pytest.approx(0.02)
