from __future__ import annotations

import pytest
import torch

from partopt.blinded import exact
from partopt.blinded.layers import Layer, Window
from partopt.blinded.reference import integers
from partopt.blinded.ring import add, subtract, uniform, wrap
from partopt.errors import BackendError

from .conftest import inputs, weights

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("how", exact.ARITHMETIC)
@pytest.mark.parametrize("device", DEVICES)
def test_every_layer_is_exact_on_masked_values(layer, how, device):
    masked = uniform((2, *layer.shape))
    found = exact.modular(layer, masked.to(device), how).cpu()
    assert torch.equal(found, wrap(integers(layer, masked)))


def test_masking_and_unmasking_gives_the_integers(layer):
    x, mask = inputs(layer), uniform((2, *layer.shape))
    answer = exact.modular(layer, add(x, mask))
    assert torch.equal(
        subtract(answer, exact.modular(layer, mask)).to(torch.int64), integers(layer, x)
    )


@pytest.mark.parametrize("how", exact.ARITHMETIC)
def test_the_largest_values_in_more_columns_than_one_sum_holds(how):
    columns = 2 * (1 << 16) + 3
    layer = Layer("long", torch.full((2, columns), 127, dtype=torch.int8), (columns,), 1)
    # All of one sign, so that sums grow, and with low bits that a rounded sum would lose.
    x = torch.randint(-(2**31), -(2**31) + 1000, (1, columns)).to(torch.int32)
    assert torch.equal(exact.modular(layer, x, how), wrap(integers(layer, x)))


def test_rows_of_positions_at_a_time_change_nothing(monkeypatch):
    layer = Layer("c", weights(4, 3, 3, 3), (3, 9, 7), 255, Window((2, 1), padding=(1,) * 4))
    x = uniform((2, 3, 9, 7))
    whole = exact.modular(layer, x)
    monkeypatch.setattr(exact, "_VALUES", 1)
    assert torch.equal(exact.modular(layer, x), whole)
    assert len(list(exact.unrolled(layer, x))) == 5


def test_single_precision_would_not_do():
    """The control: what `exact` avoids is wrong at once."""
    layer = Layer("l", weights(8, 64), (64,), 255)
    x = uniform((1, 64))
    rounded = (x.to(torch.float32) @ layer.weight.to(torch.float32).T).to(torch.int64)
    assert not torch.equal(wrap(rounded), wrap(integers(layer, x)))


def test_a_saturating_processor_is_found_out(monkeypatch):
    def saturated(a, b):
        """Unsigned times signed in pairs of 16 bits, as without VNNI; the offset comes off."""
        a, b = a.to(torch.int32) + 128, b.to(torch.int32)
        first, second = a[:, ::2, None] * b[None, ::2], a[:, 1::2, None] * b[None, 1::2]
        pairs = (first + second).clamp(-(2**15), 2**15 - 1)
        return (pairs.sum(1) - 128 * b.sum(0)).to(torch.int32)

    choose = exact.choose.__wrapped__
    assert choose("cpu") in exact.ARITHMETIC
    monkeypatch.setattr(torch, "_int_mm", saturated)
    assert choose("cpu") == "float64"


def test_a_device_without_exact_arithmetic_is_refused():
    with pytest.raises(BackendError, match="exactly in none"):
        exact.choose.__wrapped__("meta")
