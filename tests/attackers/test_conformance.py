"""What every attacker must do, on heads whose answer is known: partopt.testing, and sizes."""

from __future__ import annotations

from importlib import metadata

import numpy as np
import pytest
import torch

from partopt import testing
from partopt.attackers.base import Attacker, Context
from partopt.attackers.decoder import Decoder
from partopt.attackers.hybrid import Hybrid
from partopt.attackers.linear import Linear
from partopt.attackers.pairs import Pairs
from partopt.attackers.panel import ATTACKERS, make, names
from partopt.attackers.rmle import Rmle
from partopt.attackers.rows import Rows
from partopt.attackers.scoring import ssim_of
from partopt.errors import AttackError, UsageError

LINEAR = Linear(max_cells=20_000)
DECODER = Decoder(epochs=4, width=24, narrowest=12, batch=8, linear=LINEAR)
QUICKER = Decoder(epochs=1, width=16, narrowest=8, blocks=1, batch=8, linear=LINEAR)
FEW = {"steps": 12, "tvs": (0.03,), "distances": ("l2",), "tuning_images": 8, "batch": 32}
HYBRID = Hybrid(decoder=DECODER, **FEW)
SMALL = {
    "linear": {"max_cells": 20_000},
    "sketch": {"max_cells": 20_000, "channels": 16},
    "newton": {"steps": 16, "bent": 8, "tuning_images": 4, "linear": LINEAR},
    "decoder": {"epochs": 4, "width": 24, "narrowest": 12, "batch": 8},
    "cgan": {"epochs": 6, "width": 16, "batch": 8, "l1_weight": 100.0, "lr": 2e-3},
    "rmle": {**FEW, "steps": 60, "lr": 0.1, "tvs": (0.0,), "restarts": 1},
    "hybrid": {**FEW, "decoder": DECODER},
    "stack": {"linear": LINEAR, "decoder": QUICKER, "steps": 10, "tuning_images": 16},
    "ensemble": {**FEW, "hybrid": HYBRID, "rmle": Rmle(**FEW, restarts=1)},
}
SEEING = [n for n, a in ATTACKERS.items() if a.needs_features]


def small(name: str):
    return lambda: make(name, SMALL.get(name))


# What costs several trainings is run by `make test-slow` for attackers built on others.
DEAR = {"cgan", "hybrid", "ensemble", "stack"}
TWICE = {testing.check_shuffle, testing.check_seed, testing.check_memory}


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(
            name,
            check,
            id=f"{name}-{check.__name__}",
            marks=[pytest.mark.slow] if name in DEAR and check in TWICE else [],
        )
        for name in SEEING
        for check in testing.CHECKS
    ],
)
def test_conformance(name, check):
    check(small(name))


@pytest.mark.parametrize(
    "check", [testing.check_constant, testing.check_seed, testing.check_settings]
)
def test_the_floor_itself(check):
    check(small("blind"))


def test_an_attacker_that_peeks_is_caught():
    """One that has the test images by another way than the features."""

    class Peeking(Linear):
        name = "peeking"

        def reconstruct(self, features):
            own = testing._images()[-testing.TEST :]
            return torch.from_numpy(own[: len(features)]).float() / 255

    with pytest.raises(AssertionError, match="sees images"):
        testing.check_constant(Peeking)
    with pytest.raises(AssertionError, match="order of the images"):
        testing.check_no_peeking(Peeking)


def test_plug_ins_are_found_by_entry_point(monkeypatch):
    class Mine(Linear):
        name = "mine"

    group = "partopt.attackers"
    entries = {
        "mine": metadata.EntryPoint("mine", "my_package:Mine", group),
        "broken": metadata.EntryPoint("broken", "no_such_package:X", group),
        "alien": metadata.EntryPoint("alien", "json:loads", group),
    }
    monkeypatch.setattr(
        metadata.EntryPoint, "load", lambda e: {"mine": Mine}.get(e.name) or _load(e)
    )
    monkeypatch.setattr(metadata, "entry_points", lambda group: tuple(entries.values()))
    assert {"mine", "broken", "linear"} <= set(names())
    assert isinstance(make("mine", {"max_k": 3}), Mine)
    with pytest.raises(UsageError, match="cannot load"):
        make("broken")
    with pytest.raises(UsageError, match="no attacker of that name"):
        make("alien")
    with pytest.raises(UsageError, match=r"'mini'.*mine"):
        make("mini")


def _load(entry):
    import importlib

    module, _, name = entry.value.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", ["linear", "decoder", "cgan"])
@pytest.mark.parametrize("cells", [(1, 1), (7, 7), (11, 13), (48, 48), (60, 60)])
def test_any_spatial_size(name, cells, leaves):
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(20, 5, *cells, generator=generator).half().numpy()
    attacker = make(name, {**SMALL[name], **({"epochs": 1} if name != "linear" else {})})
    attacker.fit(Pairs.of((f[:12], leaves[:12]), (f[12:16], leaves[12:16])), Context())
    rebuilt = attacker.reconstruct(f[16:20])
    assert rebuilt.shape == (4, 3, 48, 48)
    assert 0 <= float(rebuilt.min()) <= float(rebuilt.max()) <= 1


def normal(maps: torch.Tensor) -> np.ndarray:
    mean = maps[:96].double().mean((0, 2, 3), keepdim=True)
    std = maps[:96].double().std((0, 2, 3), keepdim=True)
    return torch.where(std > 0, (maps - mean) / std.clamp_min(1e-300), 0.0).half().numpy()


@pytest.fixture(scope="module")
def maps(leaves) -> torch.Tensor:
    return testing.convolutions()(torch.from_numpy(leaves).float() / 255)


@pytest.mark.parametrize("name", ["rmle", "hybrid", "ensemble"])
def test_white_box_attackers_want_the_head(name, maps, leaves):
    f = normal(maps)
    with pytest.raises(AttackError, match="needs the public head"):
        small(name)().fit(Pairs.of((f[:96], leaves[:96]), (f[96:128], leaves[96:128])), Context())


def test_the_hybrid_is_at_least_as_good_as_its_decoder():
    where = testing.arena(testing.convolutions())
    held = slice(96, 128)
    hybrid = make("hybrid", {**SMALL["hybrid"], "steps": 40, "tuning_images": 32})
    context = Context(0, head=where.head, input_size=48)
    f, i = where.features, where.images
    hybrid.fit(Pairs.of((f[:96], i[:96]), (f[held], i[held])), context)
    own = ssim_of(hybrid.reconstruct, f[held], i[held]).mean()
    below = ssim_of(hybrid.decoder.reconstruct, f[held], i[held]).mean()
    assert own >= below - 1e-6


def test_the_ensemble_takes_part_of_its_members_by_validation_alone():
    where = testing.arena(testing.convolutions())
    held = slice(96, 104)
    ensemble = small("ensemble")()
    context = Context(0, head=where.head, input_size=48)
    f, i = where.features, where.images
    ensemble.fit(Pairs.of((f[:96], i[:96]), (f[held], i[held])), context)
    own = ssim_of(ensemble.reconstruct, f[held], i[held]).mean()
    for member in (ensemble.hybrid, ensemble.hybrid.decoder, ensemble.rmle):
        assert own >= ssim_of(member.reconstruct, f[held], i[held]).mean() - 1e-6
    assert ensemble.members


def test_safer_settings():
    safer = make("ensemble").safer()
    assert isinstance(safer, Attacker)
    assert safer.hybrid.decoder.lr < make("decoder").lr
    assert safer.hybrid.decoder.batch == make("decoder").batch // 2
    assert make("linear").safer() is None


def test_the_decoder_is_never_worse_than_linear_on_validation(maps, leaves):
    f = normal(maps)
    decoder = make("decoder", SMALL["decoder"])
    decoder.fit(Pairs.of((f[:96], leaves[:96]), (f[96:128], leaves[96:128])), Context())
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
    decoder.fit(Pairs.of((f[:96], leaves[:96]), (f[96:128], leaves[96:128])), context)
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
