"""A cut between two sampled ones that leaks more than both, and what becomes of the answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from partopt.config import Attack, Lead, SplitConfig
from partopt.images.load import Split
from partopt.models.load import LoadedModel
from partopt.optimizer.budgets import BUDGETS
from partopt.optimizer.find import find
from partopt.optimizer.limits import Held, Limits
from partopt.optimizer.rule import Verdict
from partopt.optimizer.sweep import _ahead, _suspect, bound, may_leak
from partopt.preprocessing import Preprocessing


class Coupling(nn.Module):
    """A channel hides the others, each pixel with a phase of its own."""

    def __init__(self) -> None:
        super().__init__()
        phase = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        self.register_buffer("phase", 2 * torch.pi * phase)

    def mask(self, x: torch.Tensor) -> torch.Tensor:
        return 9 * torch.sin(300 * x + self.phase)


class Scramble(Coupling):
    """Two couplings that no learner here sees through, and that the next layer takes back."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x[:, :1], x[:, 1:]
        b = b + self.mask(a)
        return torch.cat([a + self.mask(b[:, :1]), b], 1)


class Restore(Coupling):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x[:, :1], x[:, 1:]
        a = a - self.mask(b[:, :1])
        return torch.cat([a, b - self.mask(a)], 1)


class Hiding(nn.Module):
    """Leaks nothing that a learner finds, then everything, then nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.scramble = Scramble()
        self.restore = Restore()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.pool(self.restore(self.scramble(x))), 1))


class Calm(nn.Module):
    """Three means are all that is left after the pool; then a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.one, self.two, self.fc = nn.Linear(3, 8), nn.Linear(8, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.flatten(self.pool(x), 1)
        x = x + self.two(torch.tanh(self.one(x)))
        return self.fc(torch.tanh(x))


@pytest.fixture
def small(monkeypatch, later_is_slower):
    budget = replace(
        BUDGETS["quick"],
        split=Split(64, 16, 24),
        resolution=32,
        minimum_images=20,
        settings={
            "linear": {"max_cells": 8000},
            "newton": {"steps": 8, "bent": 4, "tuning_images": 4},
            "decoder": {"epochs": 1, "width": 8, "narrowest": 8, "blocks": 1},
        },
    )
    monkeypatch.setitem(BUDGETS, "quick", budget)


def loaded(module: nn.Module) -> LoadedModel:
    torch.manual_seed(0)
    return LoadedModel(
        spec="tests:hiding",
        module=module.eval(),
        weights="random (seed 0)",
        preprocessing=Preprocessing(32, 36, (0.5,) * 3, (0.5,) * 3),
        weights_hash="0" * 64,
    )


def test_what_leaks_between_sampled_cuts_moves_the_answer(small):
    model = loaded(Hiding())
    result = find(model, cuts=["scramble", "pool"], repetitions=1)
    config = result.config
    assert result.cut.node == result.graph.cut("pool").node
    before = config.cuts[0]
    assert before.status == "leaks"
    assert before.reason == "proven at a later cut"
    assert before.high < 0.2, "alone it looks safe"
    promoted = [r for r in config.cuts if r.swept]
    assert any(r.low >= 0.2 for r in promoted)
    assert config.cut.name not in [r.name for r in promoted]
    assert SplitConfig.parse(config.to_json().encode()) == config
    again = find(model, cuts=["scramble", "pool"], repetitions=1).config
    assert again.cut.name == config.cut.name
    assert again.search.trials_run == 0, "a sweep is stored and resumed like any attack"


def test_every_cut_from_the_answer_on_is_swept_those_of_several_tensors_too(small):
    result = find(loaded(Calm()), cuts=["pool", "add"], ssim=0.5, repetitions=1)
    config = result.config
    start = result.graph.cut(config.cut.name).node
    wanted = {c.name for c in result.graph.cuts("all") if c.node >= start}
    rows = {r.name for r in config.cuts}
    assert {s.name for s in config.sweep.cuts} == wanted - rows
    assert max(s.tensors for s in config.sweep.cuts) > 1
    assert all(a.outcome == "full budget" for s in config.sweep.cuts for a in s.attacks)
    highs = [a.high for s in config.sweep.cuts for a in s.attacks]
    assert config.privacy.suffix_high >= max([config.privacy.high, *highs])
    assert may_leak(config.sweep, held()) is None
    stored_ones_are_not_believed(config.sweep.model_copy(deep=True))


def test_how_far_the_panel_was_ahead_is_measured_not_guessed():
    def pair(low, high, cheap):
        full = Verdict(
            value=high,
            low=low,
            high=high,
            suffix_value=high,
            suffix_high=high,
            suffix_low=low,
            complete=True,
            status="safe",
            reason="",
        )
        panel = [swept(0.0, over=4, retrieved=2, largest=0.3), swept(0.0, over=2, retrieved=9)]
        return full, panel, swept(cheap, over=1, retrieved=3, largest=0.25)

    assert _ahead([]) == lead()
    ahead = _ahead([pair(0.06, 0.08, 0.03), pair(0.0, 0.02, 0.001)])
    assert ahead.lead == pytest.approx(0.05)
    assert ahead.proportion == pytest.approx(8 / 3), "0.001 is below the width of the interval"
    assert bound(0.2, ahead.lead, ahead.proportion) == pytest.approx(0.075)
    assert (ahead.over, ahead.retrieved) == (3, 6)
    assert ahead.largest == pytest.approx(0.05)
    assert _ahead([pair(0.1, 0.12, None)]).lead == pytest.approx(0.12), "a failed one is blind"


def swept(high, **seen):
    score = None if high is None else 0.0
    return Attack(
        attacker="sketch", settings="", outcome="full budget", score=score, high=high, **seen
    )


def lead(**known):
    return Lead(**{"lead": 0.0, "over": 0, "retrieved": 0, "largest": 0.0} | known)


def held(threshold=0.5, **limits):
    return Held(limits=Limits(**limits), threshold=threshold, scale="corrected", images=24)


@pytest.mark.parametrize(
    ("ahead", "limits", "suspect"),
    [
        (lead(), {}, False),
        (lead(largest=0.4), {}, True),
        (lead(largest=0.4), {"copies": False}, False),
        (lead(largest=None), {}, True),
        (lead(), {"worst_share": 0.2}, False),
        (lead(over=5), {"worst_share": 0.2}, True),
        (lead(over=None), {"worst_share": 0.2}, True),
        (lead(), {"worst_retrieval": 0.5}, False),
        (lead(retrieved=9), {"worst_retrieval": 0.5}, True),
        (lead(retrieved=None), {"worst_retrieval": 0.5}, True),
        (lead(retrieved=None, over=None), {}, False),
    ],
)
def test_a_swept_cut_is_held_against_what_is_allowed_of_single_images(ahead, limits, suspect):
    seen = [swept(0.1, over=0, retrieved=3, largest=0.55)]
    assert _suspect(seen, held(**limits), {"sketch": ahead}) is suspect


@pytest.mark.parametrize(("more", "suspect"), [(0.0, False), (0.3, True)])
def test_the_small_decoder_is_held_to_its_own_lag(more, suspect):
    seen = [swept(0.0, over=0, retrieved=0, largest=0.1)]
    seen += [seen[0].model_copy(update={"attacker": "decoder", "high": 0.3})]
    leads = {"sketch": lead(), "decoder": lead(lead=more)}
    assert _suspect(seen, held(), leads) is suspect


def test_an_image_copied_at_a_swept_cut_makes_it_suspect():
    assert _suspect([swept(0.1, over=1, retrieved=1, largest=0.95)], held(), {"sketch": lead()})
    assert _suspect([swept(0.1)], held(), {"sketch": lead()}), "nobody looked at single images"


def stored_ones_are_not_believed(sweep):
    """Where a stored sweep comes too close to the threshold, or says nothing."""
    name, sweep.sketch = sweep.cuts[0].name, lead(lead=0.05)
    for high, suspect in ((0.46, name), (0.44, None), (None, name)):
        sweep.cuts[0].attacks[0].high = high
        assert may_leak(sweep, held()) == suspect
    sweep.cuts[0].attacks = []
    assert may_leak(sweep, held()) == name
