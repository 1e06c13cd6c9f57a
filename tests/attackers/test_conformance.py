"""What every attacker must do, on heads whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from partopt.attackers.base import Context
from partopt.attackers.panel import ATTACKERS, make
from partopt.attackers.rows import Rows
from partopt.attackers.scoring import corrected, ssim_of

SMALL = {
    "linear": {"max_cells": 20_000},
    "decoder": {"epochs": 4, "width": 24, "narrowest": 12, "batch": 8},
}
SEEING = [n for n, a in ATTACKERS.items() if a.needs_features]


def normal(maps: torch.Tensor) -> np.ndarray:
    mean = maps[:96].double().mean((0, 2, 3), keepdim=True)
    std = maps[:96].double().std((0, 2, 3), keepdim=True)
    return torch.where(std > 0, (maps - mean) / std.clamp_min(1e-300), 0.0).half().numpy()


def attack(name: str, maps: torch.Tensor, images: np.ndarray, seed: int = 0) -> float:
    """Mean SSIM on the 32 test images; 96 train, 32 validate."""
    f = normal(maps)
    attacker = make(name, SMALL.get(name))
    attacker.fit(f[:96], images[:96], validation=(f[96:128], images[96:128]), context=Context(seed))
    return float(ssim_of(attacker.reconstruct, f[128:160], images[128:160]).mean())


@pytest.fixture(scope="module")
def unit(leaves) -> torch.Tensor:
    return torch.from_numpy(leaves).float() / 255


@pytest.fixture(scope="module")
def floor(unit, leaves) -> float:
    return attack("blind", unit[:, :1], leaves)


@pytest.fixture(scope="module")
def maps(unit) -> torch.Tensor:
    torch.manual_seed(0)
    conv = torch.nn.Sequential(
        torch.nn.Conv2d(3, 12, 5, 2, 2), torch.nn.ReLU(), torch.nn.Conv2d(12, 24, 3, 2, 1)
    )
    with torch.no_grad():
        return conv(unit)


@pytest.mark.parametrize("name", SEEING)
def test_identity_head_is_rebuilt(name, unit, leaves):
    assert attack(name, unit, leaves) >= 0.95


@pytest.mark.parametrize("name", list(ATTACKERS))
def test_constant_head_stays_at_the_floor(name, leaves, floor):
    constant = torch.ones(160, 6, 12, 12) * 0.1
    value = attack(name, constant, leaves)
    assert corrected(value, floor) <= 0.02


@pytest.mark.parametrize("name", SEEING)
def test_shuffled_channels_change_nothing(name, maps, leaves):
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    assert abs(attack(name, maps, leaves) - attack(name, maps[:, order], leaves)) < 0.02


@pytest.mark.parametrize("name", list(ATTACKERS))
def test_seeded(name, maps, leaves):
    assert attack(name, maps, leaves, seed=4) == pytest.approx(
        attack(name, maps, leaves, seed=4), abs=1e-6
    )


@pytest.mark.parametrize("name", list(ATTACKERS))
def test_repr_shows_every_setting(name):
    attacker = make(name)
    for setting in attacker.settings():
        assert f"{setting}=" in repr(attacker)


@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize("cells", [(1, 1), (7, 7), (11, 13), (48, 48), (60, 60)])
def test_any_spatial_size(name, cells, leaves):
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(20, 5, *cells, generator=generator).half().numpy()
    attacker = make(name, {**SMALL[name], **({"epochs": 1} if name == "decoder" else {})})
    attacker.fit(f[:12], leaves[:12], validation=(f[12:16], leaves[12:16]))
    rebuilt = attacker.reconstruct(f[16:20])
    assert rebuilt.shape == (4, 3, 48, 48)
    assert 0 <= float(rebuilt.min()) <= float(rebuilt.max()) <= 1


def test_the_decoder_is_never_worse_than_linear_on_validation(maps, leaves):
    f = normal(maps)
    decoder = make("decoder", SMALL["decoder"])
    decoder.fit(f[:96], leaves[:96], validation=(f[96:128], leaves[96:128]))
    assert max(decoder.history) >= decoder.history[0]
    own = ssim_of(decoder.reconstruct, f[96:128], leaves[96:128]).mean()
    below = ssim_of(decoder.linear.reconstruct, f[96:128], leaves[96:128]).mean()
    assert own >= below - 1e-3


def test_proof_stops_training_and_is_asked_only_on_improvement(maps, leaves):
    asked = []

    def proven(reconstruct, value):
        asked.append(value)
        return True

    f = normal(maps)
    context = Context(proven=proven)
    decoder = make("decoder", {**SMALL["decoder"], "epochs": 10})
    decoder.fit(f[:96], leaves[:96], validation=(f[96:128], leaves[96:128]), context=context)
    assert len(asked) == 1
    assert context.stopped_early
    assert asked == sorted(asked)


def test_rows_from_files_equal_rows_in_memory(tmp_path):
    data = np.random.default_rng(0).normal(size=(10, 2, 3, 3)).astype(np.float16)
    data[:6].tofile(tmp_path / "a")
    rows = Rows([(tmp_path / "a", (6, 2, 3, 3), "float16"), data[6:]])
    index = np.array([9, 0, 5, 6, 3])
    assert len(rows) == 10
    assert np.array_equal(rows.take(index), data[index])
