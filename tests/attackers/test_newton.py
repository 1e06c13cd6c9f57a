"""What mixes all pixels and loses none of them is undone by whoever knows the weights."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from partopt.attackers.base import Context
from partopt.attackers.layout import Place, to_map
from partopt.attackers.least_squares import Prior, departure
from partopt.attackers.linear import Linear
from partopt.attackers.newton import Newton
from partopt.attackers.pairs import Pairs
from partopt.attackers.scoring import ssim_of
from partopt.errors import AttackError
from partopt.optimizer.budgets import BUDGETS
from partopt.testing import arena

SIDE = 16
CELLS = 3 * SIDE * SIDE


@cache
def rotation(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(size, size, generator=generator))[0]


def hadamard(size: int) -> torch.Tensor:
    found = torch.ones(1, 1)
    while len(found) < size:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found / size**0.5


def dense(unit):
    return (unit.flatten(1) @ rotation(CELLS))[..., None, None]


def permuted(unit):
    order = torch.randperm(CELLS, generator=torch.Generator().manual_seed(0))
    return unit.flatten(1)[:, order][..., None, None]


def shuffled_map(unit):
    order = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(0))
    return unit.flatten(2)[..., order].view(unit.shape)


def transformed(unit):
    return (F.pad(unit.flatten(1), (0, 1024 - CELLS)) @ hadamard(1024))[..., None, None]


def tokens(unit):
    patches = F.unfold(unit, 4, stride=4).transpose(1, 2) @ rotation(48)
    mixed = torch.einsum("st,ntc->nsc", rotation(16), patches)
    return to_map([mixed], [Place(cells=(0,), grid=(4, 4))])


def bent(unit):
    return F.leaky_relu(unit.flatten(1) @ rotation(CELLS), 0.2)[..., None, None]


def chaotic(unit):
    return torch.sin(400 * unit)


@pytest.fixture(scope="module")
def world():
    """A head's world at 16x16, and fitted attackers on it."""

    def make(head, newton: Newton):
        def small(unit):
            return head(F.adaptive_avg_pool2d(unit, SIDE))

        where = arena(small)
        images = torch.from_numpy(where.images).float()
        images = F.adaptive_avg_pool2d(images, SIDE).round().byte().numpy()
        context = Context(0, head=where.head, input_size=SIDE)
        f, held = where.features, slice(96, 128)
        newton.fit(Pairs.of((f[:96], images[:96]), (f[held], images[held])), context)
        return newton, f[128:], images[128:]

    return make


def quick() -> Newton:
    found = BUDGETS["quick"].panel()["newton"]
    assert isinstance(found, Newton)
    return found


@pytest.mark.parametrize("head", [dense, permuted, shuffled_map, transformed, tokens])
def test_what_only_mixes_is_rebuilt(world, head):
    newton, features, images = world(head, quick())
    assert ssim_of(newton.linear.reconstruct, features, images).mean() < 0.75
    assert ssim_of(newton.reconstruct, features, images).mean() >= 0.95


def test_a_head_that_is_nearly_linear_is_linearised_anew(world):
    newton, features, images = world(bent, quick())
    assert 0.1 < newton.affine < newton.reach
    below = ssim_of(newton.linear.reconstruct, features, images).mean()
    assert ssim_of(newton.reconstruct, features, images).mean() > below + 0.2


def test_far_from_linear_the_linear_picture_stays(world):
    newton, features, _ = world(chaotic, quick())
    assert newton.affine > newton.reach
    assert newton.choice is None
    assert torch.equal(newton.reconstruct(features), newton.linear.reconstruct(features))


def test_it_wants_the_head_and_refuses_what_is_not_finite(world):
    with pytest.raises(AttackError, match="needs the public head"):
        world_of = np.zeros((8, 3, 4, 4), np.float16)
        images = np.zeros((8, 3, 16, 16), np.uint8)
        Newton().fit(Pairs.of((world_of, images), (world_of, images)), Context())

    def broken(unit):
        return unit * float("nan") if unit.requires_grad or len(unit) < 96 else unit

    with pytest.raises(AttackError):
        world(broken, Newton(linear=Linear(max_cells=2000)))


def test_departure_is_zero_for_affine_heads_alone():
    a, b = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    assert departure(lambda u: 3 * u - 1, a, b) < 1e-5
    assert departure(lambda u: torch.sin(40 * u), a, b) > 0.5


def test_the_prior_is_symmetric_and_falls_with_frequency(leaves):
    images = torch.from_numpy(leaves[:32]).float() / 255
    prior = Prior.of(images)
    assert 0.5 < prior.fall <= 2
    a, b = torch.randn(2, 1, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    assert float((prior(a) * b).sum()) == pytest.approx(float((a * prior(b)).sum()), rel=1e-4)
    rough = (-1.0) ** torch.arange(20)
    fine, coarse = rough.expand(1, 3, 20, 20), torch.ones(1, 3, 20, 20)
    assert float(prior(fine).norm()) < float(prior(coarse).norm()) / 5
