from __future__ import annotations

import pytest
import torch
from torch import nn

from partopt.blinded.exact import modular
from partopt.blinded.layers import Layer, Window
from partopt.blinded.reference import integers
from partopt.errors import BlindingError

from .conftest import weights


def test_shapes_are_torchs(layer):
    assert layer.output_shape == integers(layer, torch.zeros(1, *layer.shape)).shape[1:]


def test_the_bound_is_reached_and_never_passed(layer):
    rows = layer.weight.to(torch.int64).flatten(1)
    worst = rows[rows.abs().sum(1).argmax()].sign() * layer.limit
    assert int((rows @ worst).abs().max()) == layer.bound


def test_multiply_adds():
    conv = Layer("c", weights(6, 2, 3, 3), (4, 8, 8), 255, Window(padding=(1,) * 4, groups=2))
    assert conv.macs == 6 * 8 * 8 * 2 * 9
    assert Layer("l", weights(9, 12), (5, 12), 255).macs == 5 * 9 * 12


@pytest.mark.parametrize(("limit", "inside"), [(64, False), (65, True)])
def test_a_layer_whose_sums_reach_half_of_the_prime_stays_inside(limit, inside):
    columns = (2**30 - 1) // (127 * 64)
    layer = Layer("wide", torch.full((2, columns), 127, dtype=torch.int8), (columns,), limit)
    assert (layer.bound >= (2**31 - 1) / 2) == inside
    assert bool(layer.unprovable) == inside
    if inside:
        with pytest.raises(BlindingError, match="'wide' cannot be blinded"):
            layer.proved()
    else:
        assert layer.proved() is layer


def test_inputs_beyond_what_the_check_multiplies_exactly_stay_inside():
    assert Layer("l", weights(2, 4), (4,), 2**12).unprovable is None
    assert "the check takes up to 4096" in Layer("l", weights(2, 4), (4,), 2**12 + 1).unprovable


def test_what_is_refused_does_wrap():
    """The proof is needed: beyond the ring the residue is another number."""
    layer = Layer("wide", torch.full((1, 64), 127, dtype=torch.int8), (64,), 2**20)
    x = torch.full((1, 64), 2**20, dtype=torch.int32)
    assert layer.unprovable
    assert int(modular(layer, x)) != int(integers(layer, x))


def test_a_published_layer_fits():
    """A 25,088-input linear layer with 8-bit inputs, all weights at their largest: 30 bits."""
    whole = torch.full((1, 25088), 127, dtype=torch.int8)
    assert Layer("fc", whole, (25088,), 255).bound < 2**30
    assert Layer("fc", whole, (25088,), 255).unprovable is None
    assert nn.Linear(25088, 1).weight.numel() == whole.numel()


@pytest.mark.parametrize(
    ("weight", "shape", "limit", "window"),
    [
        (torch.full((2, 4), -128, dtype=torch.int8), (4,), 1, None),
        (torch.zeros(2, 4), (4,), 1, None),
        (weights(2, 4), (5,), 1, None),
        (weights(2, 4), (4,), 0, None),
        (weights(3, 2, 3, 3), (4, 8, 8), 1, Window(groups=2)),
        (weights(2, 2, 3, 3), (4, 8, 8), 1, Window()),
        (weights(2, 4, 3, 3), (4, 2, 8), 1, Window()),
        (weights(2, 4, 3, 3), (4, 8), 1, Window()),
    ],
)
def test_what_does_not_fit_is_refused(weight, shape, limit, window):
    with pytest.raises(BlindingError, match="use int8 weights from -127 that fit"):
        Layer("odd", weight, shape, limit, window)
