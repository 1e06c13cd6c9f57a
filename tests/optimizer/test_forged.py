"""A forged split config names a cut that leaks: whatever it says of itself, it never passes."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from partopt.cache import cache_dir
from partopt.config import SplitConfig
from partopt.errors import UsageError
from partopt.images.dead_leaves import dead_leaves
from partopt.images.load import Split, load_images
from partopt.models import load as models
from partopt.optimizer import find as find_module
from partopt.optimizer import gate
from partopt.optimizer import prepare as prepare_module
from partopt.optimizer.budgets import BUDGETS, Budget
from partopt.optimizer.check import CheckResult, check, check_all
from partopt.optimizer.policy import Policy
from partopt.optimizer.storage import open_storage
from partopt.settings import for_find

NET = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 12, 3, 1, 1)
        self.mid = nn.Conv2d(12, 48, 4, 4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.late = nn.Linear(48, 4)
        self.fc = nn.Linear(4, 3)
    def forward(self, x):
        x = torch.flatten(self.pool(torch.tanh(self.mid(torch.tanh(self.stem(x))))), 1)
        return self.fc(torch.tanh(self.late(x)))
"""
POLICY = """
data = "photos"
budget = "standard"
latency = false
[[models]]
model = "forgednet:Net"
weights = "net.pth"
input_size = 32
split = "net.split.json"
"""
LINEAR = {"linear": {"max_cells": 8000}}
DECODER = {"decoder": {"epochs": 1, "width": 16, "narrowest": 8, "crops": 0}}
QUICK = Budget("quick", "screening", Split(48, 12, 16), 32, 20, LINEAR)
STANDARD = Budget("standard", "standard", Split(64, 16, 24), 32, 20, {**LINEAR, **DECODER})
LEAKING = "tanh_1"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Policy, photos, weights, an honest split config, and the cache that finding it left."""
    folder, cache = tmp_path_factory.mktemp("honest"), tmp_path_factory.mktemp("honest-cache")
    (folder / "forgednet.py").write_text(NET)
    (folder / "partopt.toml").write_text(POLICY)
    (folder / "photos").mkdir()
    for i, image in enumerate(dead_leaves(110, 32, seed=5)):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / "photos" / f"{i:03}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PARTOPT_CACHE", str(cache))
        patch.setitem(BUDGETS, "quick", QUICK)
        patch.setitem(BUDGETS, "standard", STANDARD)
        net = models.load_model("forgednet:Net", input_size=32).module
        torch.save(net.state_dict(), "net.pth")
        names = ("data", "weights", "budget", "input_size")
        found = find_module.find(
            "forgednet:Net",
            **for_find("forgednet:Net", dict.fromkeys(names), None),
            repetitions=2,
        )
    status = {c.name: v.status for c, v in zip(found.cuts, found.verdicts, strict=True)}
    assert status[LEAKING] == "leaks"
    assert found.found
    found.config.write(folder / "net.split.json")
    return folder, cache, json.loads((folder / "net.split.json").read_text()), moved_to(found)


def moved_to(found) -> dict:
    """The chosen cut as `find` would have written it, had it chosen the leaking one."""
    cut = found.graph.cut(LEAKING)
    info = json.loads(found.config.to_json())["cut"]
    spec = cut.boundary[0]
    info["name"], info["aliases"] = cut.name, list(cut.aliases)
    info["boundary"] = [
        {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype, "bytes": spec.bytes}
    ]
    return info


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """The folder of the honest config, and how to write a forged one into it."""
    folder, cache, honest, cut = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("PARTOPT_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(BUDGETS, "quick", QUICK)
    monkeypatch.setitem(BUDGETS, "standard", STANDARD)
    # Photos are decoded once for all of these tests, and times matter in none of them.
    monkeypatch.setattr(prepare_module, "load_images", images_of(folder))
    measure = find_module.profile
    monkeypatch.setattr(
        find_module,
        "profile",
        lambda graph, cuts, how, **k: measure(graph, cuts, replace(how, repetitions=1), **k),
    )
    monkeypatch.setattr(find_module, "verify", lambda *a, **k: None)

    def forge(*changes) -> Path:
        raw = {**copy.deepcopy(honest), "cut": copy.deepcopy(cut)}
        for row in raw["cuts"]:
            unharmed(row, like=honest["cuts"][-1])
        for change in changes:
            change(raw)
        path = tmp_path / "net.split.json"
        path.write_text(json.dumps(raw))
        SplitConfig.read(path)
        return path

    return forge


@functools.cache
def images_of(folder: Path):
    @functools.cache
    def decoded(data, preprocessing, split, seed, minimum):
        return load_images(data, preprocessing, split, seed=seed, minimum=minimum)

    def load(data, preprocessing, split, *, seed, minimum):
        if data is not None:
            data = str(folder / Path(data).name)
        return decoded(data, preprocessing, split, seed, minimum)

    return load


def unharmed(row: dict, like: dict) -> None:
    """A row as a safe cut has it, with every attack."""
    has = {attack["attacker"] for attack in row["attacks"]}
    row["attacks"] += copy.deepcopy([a for a in like["attacks"] if a["attacker"] not in has])
    row.update(score=0.0, low=0.0, high=0.01, suffix_score=0.0, suffix_high=0.01, safe=True)
    row.update(status="safe", reason="below the threshold here and later")
    for attack in row["attacks"]:
        attack.update(outcome="full budget", score=0.0, low=0.0, high=0.01, ssim_raw=0.0)
        attack.update(over=0, over_high=0.1, largest=0.0, retrieved=0, retrieved_high=0.1)


def setting(*path, value):
    def change(raw: dict) -> None:
        *way, last = path
        functools.reduce(lambda at, key: at[key], way, raw)[last] = value

    return change


def single_row(raw: dict) -> None:
    raw["cuts"] = [row for row in raw["cuts"] if row["name"] == raw["cut"]["name"]]


def weak_panel(raw: dict) -> None:
    raw["privacy"]["attackers"] = [{"name": "blind", "settings": "Blind()"}]
    for row in raw["cuts"]:
        row["attacks"] = []


def quick(raw: dict) -> None:
    raw["privacy"].update(
        budget="quick", evidence="full", images={"train": 48, "validation": 12, "test": 16}
    )


def older(raw: dict) -> None:
    raw["versions"].pop("attack")
    raw["model"]["graph_hash"] = "0" * 64


FORGERIES = {
    "threshold": setting("privacy", "threshold", value=0.99),
    "panel": weak_panel,
    "budget": quick,
    "resolution": setting("privacy", "resolution", value=16),
    "rows": single_row,
    "preprocessing": setting("model", "preprocessing", "std", value=[90.0] * 3),
    "seed": setting("seed", value=7),
    "attack code": setting("versions", "attack", value="99:0123456789abcdef"),
    "older": older,
    "protocol": setting("privacy", "protocol", value="paper"),
    "scale": setting("privacy", "scale", value="raw"),
    "data hash": setting("privacy", "data_hash", value="0" * 64),
    "data": setting("privacy", "data", value="generated: dead leaves, seed 0"),
    "weights hash": setting("model", "weights_hash", value="0" * 64),
    "graph hash": setting("model", "graph_hash", value="graph2:" + "0" * 64),
    "random weights": setting("model", "random_weights", value=True),
    "tuned": setting("privacy", "tuned", value=50),
    "floor": setting("privacy", "floor", value=0.99),
}
CORE = ("threshold", "panel", "budget", "resolution", "rows", "seed", "protocol", "scale", "older")


def privacy(result: CheckResult) -> tuple[str, str]:
    return next((p.what, p.detail) for p in result.properties if p.name == "privacy")


def against_the_policy(**given) -> CheckResult:
    (result,) = check_all([], None, **given)
    return result


def test_the_honest_config_holds_without_an_attack(here, made):
    (Path.cwd() / "net.split.json").write_text(json.dumps(made[2]))
    result = against_the_policy()
    assert result.exit_code == 0, result.properties
    assert result.found.config.search.trials_run == 0
    assert "this machine's own attacks" in privacy(result)[1]


def test_moving_the_cut_alone_is_seen(here):
    here()
    result = against_the_policy()
    assert result.exit_code == 4, result.properties
    assert privacy(result)[0] == "regressed"


@pytest.mark.parametrize("name", FORGERIES)
def test_each_forgery_fails(here, name):
    here(FORGERIES[name])
    assert against_the_policy().exit_code in (1, 4)


@pytest.mark.parametrize("first", CORE)
def test_forgeries_in_pairs_fail(here, first):
    for second in CORE[CORE.index(first) + 1 :]:
        here(FORGERIES[first], FORGERIES[second])
        assert against_the_policy().exit_code in (1, 4), (first, second)


@pytest.mark.parametrize("left_out", ["none of them", "preprocessing", "data hash"])
def test_all_forgeries_at_once_fail(here, left_out):
    here(*(change for name, change in FORGERIES.items() if name != left_out))
    assert against_the_policy().exit_code in (1, 4)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("threshold", "made with threshold 0.99, the policy says 0.2"),
        ("panel", "made without the policy's linear, decoder"),
        ("budget", "made with budget quick, the policy says standard"),
        ("resolution", "made with resolution 16, the policy says 32"),
        ("rows", "it lists no attack on"),
        ("seed", "made with seed 7, the policy says 0"),
        ("attack code", "by an older partopt"),
        ("older", "by an older partopt"),
        ("protocol", "made with protocol paper, the policy says strict"),
        ("scale", "made with scale raw, the policy says corrected"),
    ],
)
@pytest.mark.parametrize("trust", [None, True])
def test_the_output_says_why_a_config_is_not_believed(here, name, said, trust):
    here(FORGERIES[name])
    result = against_the_policy(trust_stored=trust)
    words = next(p.detail for p in result.properties if p.name == "policy")
    assert "not believed" in words
    assert said in words
    assert result.exit_code == 4, "a word of trust does not reach evidence of other terms"


def test_what_fails_to_match_says_what_to_do(here):
    for name, words in (
        ("preprocessing", "--std"),
        ("data hash", "--new-data"),
        ("random weights", None),
    ):
        here(FORGERIES[name])
        result = against_the_policy()
        if words is not None:
            assert result.exit_code == 1
            assert words in result.properties[-1].detail


def test_all_later_cuts_are_judged_whatever_the_config_lists(here, made):
    here(single_row, setting("cut", value=made[2]["cut"]))
    result = against_the_policy()
    graph = result.found.graph
    assert [c.name for c in result.found.cuts] == [c.name for c in graph.cuts("clean")]


def test_without_a_policy_the_built_in_one_holds(here, monkeypatch):
    here(FORGERIES["threshold"], FORGERIES["panel"], FORGERIES["rows"])
    Path("partopt.toml").unlink()
    terms = Policy(input_size=32)
    given = {"weights": "net.pth", "latency": False, "trust_model": True}
    (result,) = check_all(["net.split.json"], None, terms=terms, **given)
    assert result.exit_code == 1, "photos are not there unless they are given"
    assert "--data" in privacy(result)[1]
    (result,) = check_all(["net.split.json"], None, terms=terms, data="photos", **given)
    assert result.exit_code == 4
    lax = Policy(input_size=32, ssim=0.99, attackers=["linear"])
    (result,) = check_all(["net.split.json"], None, terms=lax, data="photos", **given)
    assert result.exit_code in (0, 5), "an explicit word on the command line is a policy"


def test_a_settings_file_beside_the_change_can_be_left_out(here):
    here(FORGERIES["threshold"])
    Path("partopt.toml").write_text(POLICY.replace("budget", "ssim = 0.99\nbudget"))
    terms = Policy(input_size=32)
    given = {"weights": "net.pth", "data": "photos", "latency": False, "budget": "standard"}
    (result,) = check_all(["net.split.json"], None, **given)
    assert result.exit_code in (0, 5), "it is a policy where nobody says another"
    told = {"terms": terms, "trust_model": True}
    (result,) = check_all(["net.split.json"], "none", **told, **given)
    assert result.exit_code == 4


def test_the_policy_of_one_folder_on_the_change_in_another(here, made, tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    shutil.copytree(made[0], base, dirs_exist_ok=True)
    here(FORGERIES["threshold"])
    Path("partopt.toml").write_text(POLICY.replace("budget", "ssim = 0.99\nbudget"))
    (result,) = check_all([], base / "partopt.toml", under_test=Path.cwd())
    assert result.exit_code == 4
    (result,) = check_all([], base / "partopt.toml")
    assert result.exit_code == 0, "the base's own config"


def poison(url: str | None) -> int:
    """Say in a storage that every attack failed to rebuild anything."""
    storage, _ = open_storage(url)
    count = 0
    for study in storage.get_all_studies():
        for trial in storage.get_all_trials(study._study_id):
            if "key" not in trial.user_attrs:
                continue
            new = copy.deepcopy(trial)
            sides = new.user_attrs["ssim_per_side"]
            new.user_attrs["ssim_per_side"] = {s: [0.0] * len(v) for s, v in sides.items()}
            new.user_attrs["complete"] = True
            storage.create_new_trial(study._study_id, template_trial=new)
            count += 1
    return count


def test_attacking_again_uses_nothing_that_is_stored(here, made, tmp_path, monkeypatch):
    shutil.copytree(made[1], tmp_path / "poisoned")
    monkeypatch.setenv("PARTOPT_CACHE", str(tmp_path / "poisoned"))
    assert poison(None) > 0
    here()
    result = against_the_policy(reattack=True)
    assert result.exit_code == 4
    assert result.found.config.search.trials_run > 0
    assert result.found.config.search.trials_reused == 0
    assert not list(cache_dir().glob("fresh-*"))
    assert str(cache_dir()) == str(tmp_path / "poisoned")


def test_a_forged_config_on_a_machine_that_has_attacked_nothing(here, tmp_path, monkeypatch):
    monkeypatch.setenv("PARTOPT_CACHE", str(tmp_path / "cold"))
    here(*(FORGERIES[n] for n in CORE))
    assert against_the_policy(attack=False).exit_code == 1
    assert against_the_policy().exit_code == 4


def test_a_word_of_trust(here, made):
    path = Path.cwd() / "net.split.json"
    path.write_text(json.dumps(made[2]))
    told = {"weights": "net.pth", "latency": False, "attack": False, "trust_model": True}
    terms = Policy(input_size=32, trust_stored=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARTOPT_CACHE", str(Path.cwd() / "cold"))
        held = check(path, policy=replace(terms, budget="standard"), **told)
        assert held.exit_code == 0, held.properties
        assert "believed as asked" in privacy(held)[1]
        raw = copy.deepcopy(made[2])
        raw["cuts"][-1]["attacks"][0]["key"] = "0" * 64
        path.write_text(json.dumps(raw))
        other = check(path, policy=replace(terms, budget="standard"), **told)
        assert other.exit_code == 1
        assert "stored attacks are not those of these terms" in str(other.properties)


def test_reattack_beside_what_is_stored_is_refused(here):
    path = here()
    with pytest.raises(UsageError, match="`reattack` got --storage"):
        check(path, reattack=True, storage="s.journal")
    with pytest.raises(UsageError, match="`reattack` got --no-attack"):
        check(path, reattack=True, attack=False)


def test_these_tests_can_fail(here, monkeypatch):
    """Put two faults back in and see that forged configs would pass."""
    here(FORGERIES["threshold"])
    with monkeypatch.context() as patch:
        patch.setattr(gate, "laxer", lambda *args: [])
        assert against_the_policy(trust_stored=True).exit_code == 4, "the keys are of other attacks"
        patch.setattr(gate, "_foreign", lambda subject: [])
        assert against_the_policy(trust_stored=True).exit_code in (0, 5)
    here(FORGERIES["threshold"])
    real = Policy.terms

    def believing(self, config, device):
        return real(replace(self, ssim=config.privacy.threshold), config, device)

    monkeypatch.setattr(Policy, "terms", believing)
    assert against_the_policy().exit_code in (0, 5)
