"""Tuning attackers at the boundary: a stronger setting moves the cut, a weaker one does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import optuna
import pytest
import torch

from partopt import cli
from partopt.attackers import panel as registry
from partopt.attackers.base import Range, Tunable
from partopt.attackers.linear import Linear
from partopt.attackers.panel import ATTACKERS
from partopt.config import SplitConfig
from partopt.errors import AttackError, UsageError
from partopt.images.load import Split
from partopt.optimizer import search as search_module
from partopt.optimizer.budgets import BUDGETS
from partopt.optimizer.find import find
from partopt.optimizer.storage import open_storage


@dataclass(repr=False)
class Shy(Linear):
    """Looks harmless until it is tuned: grey pictures unless `power` is 1."""

    name: ClassVar[str] = "shy"
    tunable: ClassVar[Tunable] = {"power": (0.0, 0.5, 1.0), "strength": Range(0.1, 10.0)}

    power: float = 0.0
    strength: float = 1.0
    max_cells: int = 8000

    def fit(self, *args, **kwargs):
        if self.power == 0.5:
            raise AttackError("diverged")
        super().fit(*args, **kwargs)

    def reconstruct(self, features: np.ndarray) -> torch.Tensor:
        rebuilt = super().reconstruct(features)
        return rebuilt if self.power else torch.full_like(rebuilt, 0.5)


@pytest.fixture
def setup(monkeypatch, tmp_path):
    budget = replace(
        BUDGETS["quick"],
        split=Split(64, 16, 24),
        resolution=32,
        minimum_images=20,
        settings={"shy": {}},
    )
    monkeypatch.setitem(BUDGETS, "quick", budget)
    monkeypatch.setitem(registry.ATTACKERS, "shy", Shy)
    # The earliest safe cut, however the times fall.
    monkeypatch.setattr(
        search_module, "fastest", lambda candidates, safe, leaks: min(safe, default=None)
    )
    return {"cuts": "all", "repetitions": 1, "storage": str(tmp_path / "study.journal")}


def tuning_trials(storage):
    """Trials of the tuning studies by cut and state."""
    opened, _ = open_storage(storage)
    found = []
    for study in opened.get_all_studies():
        if study.study_name.startswith("partopt-tune-"):
            found += opened.get_all_trials(study._study_id)
    return found


def test_a_stronger_setting_moves_the_cut(tiny_loaded, setup, tmp_path):
    before = find(tiny_loaded, **setup)
    assert before.found
    names = [c.name for c in before.cuts]
    after = find(tiny_loaded, tune=8, **setup)
    assert after.config.privacy.tuned == 8
    old = names.index(before.cut.name)
    row = after.config.cuts[old]
    assert row.status == "leaks", "the tuned attack broke the cut that was returned"
    assert "power=1.0" in row.attacks[0].settings
    assert "tuned: best of" in row.attacks[0].note
    assert not after.found or names.index(after.cut.name) > old
    if after.found:
        mine = after.config.cuts[names.index(after.cut.name)]
        assert mine.status == "screened"
        assert "tuned" in mine.attacks[0].note or "power=0.0" in mine.attacks[0].settings

    states = [t.state for t in tuning_trials(setup["storage"])]
    assert optuna.trial.TrialState.FAIL in states, "a setting that diverges is a failed trial"
    assert optuna.trial.TrialState.COMPLETE in states
    plain = find(tiny_loaded, **setup)
    assert plain.cut.name == before.cut.name, "without --tune tuned attacks are not believed"
    assert plain.config.search.trials_run == 0

    path = tmp_path / "a.split.json"
    after.config.write(path)
    assert SplitConfig.read(path).privacy.tuned == 8


def test_it_goes_on_where_it_stopped(tiny_loaded, setup, monkeypatch):
    setup["cuts"] = ["late.2"]
    whole = find(tiny_loaded, tune=2, **setup)
    assert whole.config.search.trials_run > 1
    assert len(tuning_trials(setup["storage"])) == 2
    again = find(tiny_loaded, tune=2, **setup)
    assert again.config.search.trials_run == 0
    assert again.config.cuts[0].attacks == whole.config.cuts[0].attacks
    find(tiny_loaded, tune=3, **setup)
    assert len(tuning_trials(setup["storage"])) == 3

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Shy, "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        find(tiny_loaded, tune=4, **setup)
    running = [t for t in tuning_trials(setup["storage"]) if not t.state.is_finished()]
    assert not running


def test_a_weaker_setting_changes_nothing(tiny_loaded, setup, monkeypatch):
    setup["cuts"] = ["down.1"]
    setup["attackers"] = ["shy"]
    monkeypatch.setattr(Shy, "tunable", {"power": (0.0,)})
    strong = replace(BUDGETS["quick"], settings={"shy": {"power": 1.0}})
    monkeypatch.setitem(BUDGETS, "quick", strong)
    plain = find(tiny_loaded, ssim=1.0, **setup)
    tuned = find(tiny_loaded, ssim=1.0, tune=2, **setup)
    assert tuned.config.cuts[0].attacks == plain.config.cuts[0].attacks


def test_attackers_without_settings_to_look_for_are_named(tiny_loaded, setup):
    setup["cuts"] = ["late.2"]
    setup["attackers"] = ["linear"]
    result = find(tiny_loaded, tune=2, **setup)
    assert any("tuning left linear as they were" in w for w in result.config.warnings)


def test_wrong_numbers(tiny_loaded, setup, capsys):
    with pytest.raises(UsageError, match="`tune` got -1"):
        find(tiny_loaded, tune=-1, **setup)
    assert cli.run(["find", "--model", "resnet18", "--tune", "-2"]) == 2
    assert "`tune` got -2" in capsys.readouterr().err


@pytest.mark.parametrize("name", [n for n, a in ATTACKERS.items() if a.tunable])
def test_what_is_looked_for_are_settings(name):
    """The attacker's own, and its default among them wherever the study looks at a few."""
    kind = ATTACKERS[name]
    settings = kind().settings()
    for setting, where in kind.tunable.items():
        assert setting in settings
        if isinstance(where, Range):
            assert where.low <= settings[setting] <= where.high
        else:
            assert settings[setting] in where
