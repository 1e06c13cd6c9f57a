import json
import os
import shutil
from dataclasses import replace
from functools import cache, partial

import pytest
import torch

from partopt.config import SplitConfig
from partopt.errors import ConfigError, UsageError
from partopt.images.load import Split
from partopt.models import load as models
from partopt.optimizer import check as check_module
from partopt.optimizer import drift
from partopt.optimizer import prepare as prepare_module
from partopt.optimizer.budgets import BUDGETS, Budget
from partopt.optimizer.check import CheckResult, check_all, worst
from partopt.optimizer.find import find
from partopt.optimizer.policy import Policy
from partopt.profilers import profile as profile_module
from partopt.profilers.base import Conditions, Duration
from partopt.profilers.target import TargetProfile

NET = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 12, 3, 1, 1)
        self.mid = nn.Conv2d(12, 48, 4, 4)
        self.late = nn.Conv2d(48, 4, 8, 8)
        self.fc = nn.Linear(4, 3)
    def forward(self, x):
        x = torch.tanh(self.mid(torch.tanh(self.stem(x))))
        return self.fc(torch.flatten(torch.tanh(self.late(x)), 1))
class Renamed(Net):
    def __init__(self):
        super().__init__()
        self.last = self.late
        del self.late
    def forward(self, x):
        x = torch.tanh(self.mid(torch.tanh(self.stem(x))))
        return self.fc(torch.flatten(torch.tanh(self.last(x)), 1))
"""
POLICY = Policy(input_size=32, cuts="all")
check = partial(check_module.check, policy=POLICY, trust_model=True)
load_images = cache(prepare_module.load_images)  # images are generated once
SMALL = Budget(
    "quick",
    "screening",
    Split(64, 16, 24),
    32,
    20,
    {
        "linear": {"max_cells": 8000},
        "decoder": {"epochs": 1, "width": 16, "narrowest": 8, "crops": 0},
    },
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a found split and weights, and the cache that finding it left."""
    folder, cache = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("made-cache")
    (folder / "checknet.py").write_text(NET)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PARTOPT_CACHE", str(cache))
        patch.setitem(BUDGETS, "quick", SMALL)
        model = models.load_model("checknet:Net", input_size=32)
        state = model.module.state_dict()
        # Trained so as to protect: after `mid` nothing of the image is left.
        nothing = {n: state[n] * 0 for n in ("mid.weight", "mid.bias")}
        protecting = {**state, **nothing}
        torch.save(protecting, "protects.pth")
        retrained = {k: v + 0.01 * torch.randn_like(v) * (v != 0) for k, v in protecting.items()}
        torch.save(retrained, "retrained.pth")
        torch.save(state, "leaks.pth")
        loaded = models.load_model("checknet:Net", input_size=32, weights="protects.pth")
        # All cuts take as long, or the machine's other work would choose one.
        patch.setattr(
            profile_module, "_duration", lambda _, where: Duration(1.0, 0.0, "measured", where)
        )
        result = find(loaded, repetitions=2, cuts="all")
    assert result.found
    assert result.cut.node < result.graph.cut("late").node, "the cut must lie where weights matter"
    result.config.write(folder / "net.split.json")
    return folder, cache


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of it for one test."""
    folder, cache = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.copytree(cache, os.environ["PARTOPT_CACHE"], dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(BUDGETS, "quick", SMALL)
    monkeypatch.setattr(prepare_module, "load_images", load_images)
    return tmp_path / "net.split.json"


def outcomes(result: CheckResult) -> dict[str, str]:
    return {p.name: p.what for p in result.properties}


def test_unchanged_inputs_hold_without_an_attack(here):
    result = check(here, weights="protects.pth", latency=False)
    assert result.exit_code == 0
    assert result.verdict == "holds, screened, not certified"
    (privacy,) = [p.detail for p in result.properties if p.name == "privacy"]
    assert privacy.startswith("screened, not certified: ")
    assert result.found.config.search.trials_run == 0
    assert outcomes(result) == {
        "graph": "holds",
        "weights": "holds",
        "policy": "holds",
        "privacy": "holds",
        "latency": "skipped",
        "best cut": "holds",
    }


def test_latency_is_a_ratio_of_the_same_run(here):
    result = check(here, weights="protects.pth", latency_tolerance=50.0)
    assert outcomes(result)["latency"] == "holds"
    raw = json.loads(here.read_text())
    raw["latency_ms"]["full_enclave"]["ms"] *= 1000
    here.write_text(json.dumps(raw))
    result = check(here, weights="protects.pth")
    assert outcomes(result)["latency"] == "slower"
    assert result.exit_code == 5


def test_leaking_weights_are_caught_by_the_first_attack(here):
    result = check(here, weights="leaks.pth", latency=False)
    assert result.exit_code == 4
    assert outcomes(result)["privacy"] == "regressed"
    assert result.found.config.search.trials_run == 1
    assert "at least" in next(p.detail for p in result.properties if p.name == "privacy")


def test_retrained_weights_that_still_protect_pass(here):
    result = check(here, weights="retrained.pth", latency=False)
    assert outcomes(result)["privacy"] == "holds"
    assert outcomes(result)["weights"] == "skipped"
    assert result.exit_code in (0, 5)
    assert result.found is not None


def test_changed_weights_without_attacks_are_undecided(here):
    for trust in (False, True):
        result = check(
            here, weights="retrained.pth", attack=False, latency=False, trust_stored=trust
        )
        assert result.exit_code == 1
        said = {p.name: (p.what, p.detail) for p in result.properties}
        assert said["weights"] == (
            "skipped",
            "the weights changed: stored evidence does not apply",
        )
        assert said["privacy"][0] == "undecided"


def test_stored_verdicts_are_not_believed(here):
    raw = json.loads(here.read_text())
    names = [r["name"] for r in raw["cuts"]]
    mine = names.index(raw["cut"]["name"])
    for attack in raw["cuts"][mine]["attacks"]:
        attack.update(score=0.9, low=0.85, high=0.95)
    here.write_text(json.dumps(raw))
    result = check(here, weights="protects.pth", latency=False, trust_stored=True)
    assert outcomes(result)["privacy"] == "regressed"
    result = check(here, weights="protects.pth", latency=False)
    assert outcomes(result)["privacy"] == "holds", "what this machine found itself counts"


def test_missing_evidence_is_not_protection(here):
    raw = json.loads(here.read_text())
    raw["cuts"][-1]["attacks"] = raw["cuts"][-1]["attacks"][:1]
    here.write_text(json.dumps(raw))
    result = check(here, weights="protects.pth", latency=False, trust_stored=True)
    assert result.exit_code == 4


def test_reattack_uses_nothing_cached(here):
    result = check(here, weights="protects.pth", reattack=True, latency=False)
    assert outcomes(result)["privacy"] == "holds"
    assert result.found.config.search.trials_run > 0
    assert result.found.config.search.trials_reused == 0


def test_a_larger_budget_is_not_ignored(here, monkeypatch):
    larger = replace(SMALL, name="standard", evidence="standard", split=Split(70, 16, 24))
    monkeypatch.setitem(BUDGETS, "standard", larger)
    result = check(here, weights="protects.pth", budget="standard", latency=False)
    assert result.found.config.search.trials_run > 0
    assert result.found.config.privacy.images["train"] == 70
    assert "made with budget quick, the policy says standard" in str(result.properties)


def test_a_config_of_an_older_partopt_is_attacked_again_and_that_is_said(
    here, tmp_path, monkeypatch
):
    raw = json.loads(here.read_text())
    raw["model"]["graph_hash"] = "0" * 64
    del raw["versions"]["attack"]
    here.write_text(json.dumps(raw))
    monkeypatch.setenv("PARTOPT_CACHE", str(tmp_path / "empty"))
    result = check(here, weights="protects.pth", latency=False)
    assert result.exit_code in (0, 5)
    assert result.found.config.search.trials_run > 0
    assert "made by an older partopt" in str(result.properties)


def test_hyper_parameters_of_a_layer_are_part_of_the_graph(here, tmp_path):
    assert check(here, weights="protects.pth", latency=False).exit_code == 0
    assert "self.mid = nn.Conv2d(12, 48, 4, 4)" in NET
    changed = NET.replace(
        "nn.Conv2d(12, 48, 4, 4)", "nn.Conv2d(12, 48, 4, 4, padding_mode='reflect')"
    )
    (tmp_path / "checknet2.py").write_text(changed)
    result = check(here, model="checknet2:Net", weights="protects.pth", latency=False)
    assert "the graph changed" in str(result.properties)
    assert result.found.config.search.trials_run > 0


def test_a_cut_that_no_longer_exists_offers_near_names(here):
    raw = json.loads(here.read_text())
    raw["cut"]["name"] = raw["cut"]["name"] + "x"
    here.write_text(json.dumps(raw))
    result = check(here, weights="protects.pth")
    assert result.exit_code == 1
    assert "nearest:" in result.properties[0].detail


def test_weights_of_another_model(here):
    other = models.load_model("squeezenet1_1", weights="none")
    torch.save(other.module.state_dict(), "other.pth")
    result = check(here, weights="other.pth")
    assert result.exit_code == 1
    assert "of another model" in result.properties[-1].detail


def test_weights_are_needed_when_they_came_from_a_file(here):
    result = check(here)
    assert result.exit_code == 1
    assert "`weights` is needed" in result.properties[-1].detail


def test_changed_data_is_undecided(here, photo_folder):
    result = check(here, weights="leaks.pth", data=photo_folder, latency=False)
    assert result.exit_code == 1
    assert "not those of the evidence" in result.properties[-1].detail


def test_faults_of_the_file(here, tmp_path):
    text = here.read_text()
    with pytest.raises(ConfigError, match="does not exist"):
        check(tmp_path / "none.json")
    here.write_text(text[: len(text) // 2])
    with pytest.raises(ConfigError, match="no JSON"):
        check(here)
    raw = json.loads(text)
    here.write_text(json.dumps({**raw, "schema": 2}))
    with pytest.raises(ConfigError, match="newer partopt"):
        check(here)
    here.write_text(json.dumps({**raw, "cut": None, "latency_ms": None}))
    with pytest.raises(ConfigError, match="holds no cut"):
        check(here)


def test_several_configs_and_settings(here, tmp_path):
    (tmp_path / "bad.split.json").write_text("{}")
    (tmp_path / "partopt.toml").write_text(
        'latency = false\n[[models]]\nmodel = "checknet:Net"\nweights = "protects.pth"\n'
        "input_size = 32\n"
        'split = "net.split.json"\n[[models]]\nmodel = "x"\nsplit = "bad.split.json"\n'
    )
    results = check_all([], None)
    assert [r.exit_code for r in results] == [0, 1]
    assert worst([r.exit_code for r in results]) == 1
    assert worst([0, 5, 1, 4]) == 4
    assert worst([0, 5]) == 5
    assert worst([]) == 0
    with pytest.raises(UsageError, match="fit one split config"):
        check_all([here, here.with_name("bad.split.json")], None, weights="protects.pth")


def test_nothing_to_check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="`splits` got nothing"):
        check_all([], None)


def test_the_schema_round_trips(here):
    assert SplitConfig.read(here).to_json() == here.read_text()


def test_latency_of_a_backend_that_is_not_here_is_skipped_and_said(here, monkeypatch):
    config = SplitConfig.read(here)
    stored = config.latency_ms.full_enclave.model_copy(update={"backend": "gramine-direct"})
    latency = config.latency_ms.model_copy(update={"full_enclave": stored})
    config.model_copy(update={"latency_ms": latency}).write(here)
    monkeypatch.setenv("PATH", "/nonexistent")
    result = check(here, weights="protects.pth")
    assert outcomes(result)["latency"] == "skipped"
    assert any("gramine-direct is not on PATH" in p.detail for p in result.properties)


def test_every_term_of_the_settings_reaches_the_check(here, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        check_module,
        "check_one",
        lambda path, request, _: seen.append(request.policy) or CheckResult(path.name, "m", "c"),
    )
    said = {
        "protocol": "strict",
        "ssim": 0.1,
        "budget": "full",
        "resolution": 64,
        "scale": "raw",
        "attackers": ["linear"],
        "cuts": ["a", "b"],
        "max_cuts": 5,
        "depth": 2,
        "tune": 3,
        "seed": 4,
        "mean": [0.1],
        "std": [0.2],
        "input_size": 32,
        "trust_stored": True,
    }
    of_models = ("mean", "std", "input_size")
    top = [f"{n} = {json.dumps(v)}" for n, v in said.items() if n not in of_models]
    own = [f"{n} = {json.dumps(said[n])}" for n in of_models]
    entry = ["[[models]]", 'model = "checknet:Net"', 'split = "listed.split.json"', *own]
    (tmp_path / "partopt.toml").write_text("\n".join([*top, *entry]))
    check_all(["listed.split.json"], None)
    check_all([here], None)  # not listed, but of the same model
    check_all([here], None, terms=Policy(ssim=0.15))
    assert all(getattr(p, n) == v for p in seen[:2] for n, v in said.items())
    assert [p.ssim for p in seen] == [0.1, 0.1, 0.15]
    assert [p.source for p in seen[1:]] == ["partopt.toml", "the command line and partopt.toml"]
    assert set(said) <= set(Policy.__dataclass_fields__)


def target(folder, change=lambda raw: None, weights="protects.pth", **conditions):
    """A profile file of the model in `folder`, all of whose cuts take as long."""
    graph = models.load_model("checknet:Net", input_size=32, weights=weights).trace()
    how = Conditions(repetitions=2, **conditions)
    every = graph.cuts("all")
    measured = profile_module.profile(graph, every, replace(how, enclave="native"))
    made = TargetProfile.of(graph, every, measured, how, spec="checknet:Net", weights=weights)
    raw = json.loads(made.to_json())
    raw["taken"]["machine"]["name"] = "far away"
    raw["full_enclave"] = raw["full_accelerator"] = {"ms": 10.0, "noise_ms": 0.0}
    for cut in raw["cuts"]:
        cut["enclave"] = cut["accelerator"] = cut["handoff"] = {"ms": 1.0, "noise_ms": 0.0}
    change(raw)
    path = folder / "far.profile.json"
    path.write_text(json.dumps(raw))
    return path


def details(result: CheckResult) -> dict[str, str]:
    return {p.name: p.detail for p in result.properties}


def test_a_profile_says_whether_the_deployed_cut_is_slower_elsewhere(here, monkeypatch):
    """Nothing is timed here; the stored cuts take three times the whole model's time."""
    path = target(here.parent)
    monkeypatch.setattr(drift, "profile", lambda *_, **__: pytest.fail("was timed"))
    result = check(here, weights="protects.pth", profile=path)
    assert outcomes(result)["latency"] == "holds"
    assert (
        "0.30 of the full-enclave time by the profile of far away, " in details(result)["latency"]
    )
    raw = json.loads(path.read_text())
    raw["full_enclave"]["ms"] = raw["full_accelerator"]["ms"] = 1.0
    for cut in raw["cuts"]:
        cut["handoff"]["ms"] = 3.0
    path.write_text(json.dumps(raw))
    result = check(here, weights="protects.pth", profile=path)
    assert outcomes(result)["latency"] == "slower"
    assert result.exit_code == 5


def test_a_profile_of_other_backends_moves_the_cut_and_compares_no_ratio(here):
    def faster_at_the_end(raw):
        raw["cuts"][-1]["handoff"]["ms"] = 0.001
        raw["cuts"][-1]["enclave"]["ms"] = 0.001

    path = target(here.parent, faster_at_the_end, enclave="gramine-sgx")
    result = check(here, weights="protects.pth", profile=path, attack=False)
    said = outcomes(result)
    assert said["latency"] == "skipped"
    assert "the profile's of gramine-sgx and cpu" in details(result)["latency"]
    assert said["best cut"] == "moved"


def test_a_profile_of_another_graph_fails_the_check_in_one_sentence(here):
    path = target(here.parent)
    raw = json.loads(path.read_text())
    raw["model"]["graph_hash"] = raw["model"]["graph_hash"][:-3] + "000"
    path.write_text(json.dumps(raw))
    result = check(here, weights="protects.pth", profile=path)
    assert result.exit_code == 1
    assert "is of another layer graph" in details(result)["run"]
    path.write_text(path.read_text()[:-200])
    (result,) = check_all(
        [here], "none", terms=POLICY, weights="protects.pth", latency=False, profile=str(path)
    )
    assert result.exit_code == 1
    assert "no whole JSON file" in details(result)["config"]


def test_ratios_of_a_target_are_not_held_against_this_machine(here, monkeypatch):
    raw = json.loads(here.read_text())
    raw["taken"]["profile"] = "0" * 64
    raw["taken"]["machine"]["name"] = "far away"
    here.write_text(json.dumps(raw))
    monkeypatch.setattr(drift, "profile", lambda *_, **__: pytest.fail("was timed"))
    result = check(here, weights="protects.pth", latency=True)
    assert outcomes(result)["latency"] == "skipped"
    assert "of a profile of far away" in details(result)["latency"]


def test_a_profile_fits_one_split_config_and_may_stand_in_the_settings(here):
    with pytest.raises(UsageError, match="`profile` fits one split config"):
        check_all([here, here], "none", profile="x.json")
    target(here.parent)
    (here.parent / "partopt.toml").write_text(
        "[[models]]\nmodel = 'checknet:Net'\nsplit = 'net.split.json'\ninput_size = 32\n"
        "cuts = 'all'\nweights = 'protects.pth'\nprofile = 'far.profile.json'\n"
    )
    (result,) = check_all([], None)
    assert "by the profile of far away" in details(result)["latency"]
