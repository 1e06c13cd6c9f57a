from __future__ import annotations

import operator

import pytest
import torch

from partopt.blinded import field
from partopt.blinded.check import Check, transposed
from partopt.blinded.field import PRIME
from partopt.blinded.layers import Layer
from partopt.blinded.reference import integers
from partopt.blinded.ring import wrap
from partopt.errors import BlindingError

from .conftest import LAYERS, inputs, weights

SMALL = Layer("small", weights(6, 20, seed=4), (20,), 255)
TRIES = 10_000


def answers(layer: Layer, images: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    x = inputs(layer, images)
    return x, integers(layer, x).to(torch.int32)


def test_sums_modulo_the_prime_are_pythons():
    secret = field.uniform(70_000)
    secret[:2000] = PRIME - 1
    values = torch.randint(-(2**12), 2**12 + 1, (2, 70_000)).to(torch.int32)
    values[0, :2000] = -(2**12)
    values[1, :2000] = 2**12
    truth = [
        sum(s * v for s, v in zip(secret.tolist(), row, strict=True)) % PRIME
        for row in values.tolist()
    ]
    found = field.dots(torch.stack([secret, secret.flip(0)]), values)
    assert found[0].tolist() == truth
    assert torch.equal(found[1], field.dots(secret.flip(0)[None], values)[0])
    assert field.dots(secret[None, :70], values[:, :70]).shape == (1, 2)


@pytest.mark.parametrize(
    ("channels", "bits"), [(5000, 30), (4096, 30), (64, 30), (512, 27), (3, 1)]
)
def test_combinations_over_channels_are_pythons(channels, bits):
    secret = field.uniform(2 * channels).reshape(2, channels)
    secret[0, : channels * 4 // 5] = PRIME - 1
    values = torch.randint(-(2**bits) + 1, 2**bits, (2, channels, 3)).to(torch.int32)
    values[0, : channels * 4 // 5] = 2**bits - 1
    truth = [
        [[sum(map(operator.mul, s, c)) % PRIME for c in image] for s in secret.tolist()]
        for image in values.transpose(1, 2).tolist()
    ]
    assert field.combined(secret, values, 2**bits - 1).tolist() == truth


def test_secrets_are_residues_and_fresh():
    secret = field.uniform(5000)
    assert int(secret.min()) >= 0
    assert int(secret.max()) < PRIME
    assert int((secret > PRIME // 2).sum()) == pytest.approx(2500, abs=250)
    assert not torch.equal(secret, field.uniform(5000))


def test_the_transposed_layer(layer):
    """Column by column: the layer of each unit input, times the secret."""
    secret = field.uniform(torch.Size(layer.output_shape).numel())
    count = torch.Size(layer.shape).numel()
    columns = integers(layer, torch.eye(count, dtype=torch.int64).reshape(count, *layer.shape))
    truth = (columns.flatten(1) * secret % PRIME).sum(1) % PRIME
    assert torch.equal(transposed(layer, secret).to(torch.int64), truth)


def test_the_truth_passes(layer):
    assert Check(layer).passes(*answers(layer, 3))


def test_any_single_element_of_any_layer(layer):
    x, y = answers(layer)
    check_ = Check(layer)
    for i in range(0, y.numel(), max(1, y.numel() // 12)):
        for change in (1, -1, 2**16, -(2**31)):
            bad = y.clone().flatten()
            bad[i] = wrap(bad[i].to(torch.int64) + change)
            assert not check_.passes(x, bad.reshape(y.shape)), (i, change)


def test_ten_thousand_changes_are_all_caught():
    x, y = answers(SMALL, 1)
    check_ = Check(SMALL)
    generator = torch.Generator().manual_seed(2)
    where = torch.randint(0, y.numel(), (TRIES,), generator=generator)
    by = torch.randint(-(2**31), 2**31, (TRIES,), generator=generator)
    by[::4] = 2**31
    by[1::4] = PRIME
    by[2::40] = -1
    by[by == 0] = 1
    missed = 0
    for i, change in zip(where.tolist(), by.tolist(), strict=True):
        bad = y.clone()
        bad[0, i] = wrap(y[0, i].to(torch.int64) + change)
        missed += check_.passes(x, bad)
    assert missed == 0


def test_over_the_ring_every_second_change_would_pass():
    """The control: one secret modulo 2^32, and 2^31 added to one output."""
    x, y = (t.to(torch.int64) for t in answers(SMALL, 1))
    secrets = torch.randint(-(2**31), 2**31, (TRIES, y.numel()))
    bad = y.clone()
    bad[0, 3] += 2**31
    missed = wrap(secrets @ bad[0]) == wrap(secrets @ SMALL.weight.to(torch.int64) @ x[0])
    assert float(missed.float().mean()) == pytest.approx(0.5, abs=0.03)


def test_the_prime_itself_added_is_seen_by_the_bound_alone():
    """The sums cannot see it, whatever the secret; so the range has to be looked at."""
    x, y = answers(SMALL, 1)
    bad = y.clone()
    i = int(bad.argmin())
    bad[0, i] = wrap(bad[0, i].to(torch.int64) + PRIME)
    check_ = Check(SMALL)
    assert torch.equal(check_._sums(bad), check_._sums(y))
    assert not check_.passes(x, bad)


def test_two_changes_that_cancel_for_a_guessed_secret_are_caught():
    x, y = answers(SMALL, 1)
    bad = y.clone()
    bad[0, 0] += 1
    bad[0, 1] -= 1
    assert not Check(SMALL).passes(x, bad)


def test_a_swapped_answer_is_caught():
    x, y = answers(SMALL, 2)
    assert not Check(SMALL).passes(x, y.flip(0))


def test_a_wrapped_sum_is_caught():
    """The same weights and values outside the proof: the residue is not the integer."""
    wide = Layer("wide", torch.full((3, 64), 127, dtype=torch.int8), (64,), 2**20)
    with pytest.raises(BlindingError, match="cannot be blinded"):
        Check(wide)
    x = torch.full((1, 64), 2**20, dtype=torch.int32)
    narrow = Check(Layer("wide", wide.weight, (64,), 255))
    assert not narrow.passes(x, wrap(integers(wide, x)))
    secret = field.uniform(3)
    wrapped = int(wrap(integers(wide, x))[0].to(torch.int64) @ secret.to(torch.int64)) % PRIME
    made = transposed(wide, secret).to(torch.int64)
    assert wrapped != int(made @ x[0].to(torch.int64)) % PRIME


def test_each_check_has_secrets_of_its_own():
    one, two = Check(LAYERS["plain"]), Check(LAYERS["plain"])
    for secrets in ((*one._channels, *two._channels), (*one._positions, *two._positions)):
        assert len({tuple(s.tolist()) for s in secrets}) == 4
    assert one.bytes == 4 * 2 * (5 + 8 * 8 + 3 * 8 * 8)
