"""Every example is run: in this process, with a small budget and generated pictures."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
import typer
import yaml
from PIL import Image

from partopt import cli, settings
from partopt.attackers import panel
from partopt.config import SplitConfig
from partopt.images.dead_leaves import dead_leaves
from partopt.images.load import Split
from partopt.optimizer.budgets import BUDGETS, Budget
from partopt.testing import CHECKS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SMALL = Budget("quick", "screening", Split(40, 12, 16), 32, 20, {"linear": {"max_cells": 3000}})
OWN = [
    "photos",
    "--model",
    "network:make",
    "--weights",
    "none",
    "--input-size",
    "64",
    "--cuts",
    "stage",
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder with 70 generated pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(dead_leaves(70, 32, seed=9)):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, pictures, monkeypatch):
    """A working folder with the examples and some pictures, and a small budget."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    shutil.copy(EXAMPLES / "custom_model" / "network.py", tmp_path)
    (tmp_path / "photos").symlink_to(pictures)
    shutil.copy(pictures / "000.png", tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(BUDGETS, "quick", SMALL)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in ("network", "examples", "examples.custom_model", "examples.custom_model.network"):
        sys.modules.pop(name, None)


def loaded(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, EXAMPLES / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def commands(path: str) -> list[list[str]]:
    """The arguments of each call of partopt in a shell script."""
    text = (EXAMPLES / path).read_text().replace("\\\n", " ")
    found = [shlex.split(x)[1:] for x in text.splitlines() if x.startswith("partopt ")]
    assert found, path
    return found


def test_own_photos(here, capsys):
    code = loaded("own_photos/find.py").main([*OWN, "--ssim", "1", "--out", "own.split.json"])
    found = SplitConfig.read("own.split.json")
    assert code == 0
    assert found.privacy.data.startswith("folder: photos")
    printed = capsys.readouterr().out
    assert all(row.name in printed and row.status in printed for row in found.cuts)
    assert f"{found.cut.name} (screening)" in printed
    assert loaded("own_photos/find.py").main([*OWN, "--ssim", "0.000001"]) == 3
    assert "no cut holds" in capsys.readouterr().out


@pytest.mark.parametrize("check", CHECKS)
def test_custom_attacker_conforms(check):
    check(loaded("custom_attacker/cellwise.py").Cellwise)


def test_custom_attacker_is_found_by_its_entry_point(monkeypatch, capsys):
    project = tomllib.loads((EXAMPLES / "custom_attacker" / "pyproject.toml").read_text())[
        "project"
    ]
    ((group, entries),) = project["entry-points"].items()
    ((name, value),) = entries.items()
    monkeypatch.setattr(sys, "path", [str(EXAMPLES / "custom_attacker"), *sys.path])
    entry = metadata.EntryPoint(name, value, group)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry] * (group == panel.GROUP))
    assert panel.make("cellwise", {"batch": 4}).batch == 4
    code = cli.run(
        [
            "attack",
            "--model",
            "network:make",
            "--weights",
            "none",
            "--input-size",
            "64",
            "--cut",
            "blocks.1.relu",
            "--attackers",
            "cellwise",
            "--budget",
            "quick",
        ]
    )
    assert code == 0
    assert "cellwise" in capsys.readouterr().out


def test_ci_gate_fails_where_the_threshold_is_reached(here):
    policy = here / "examples" / "ci_gate" / "partopt.toml"
    terms = policy.read_text()
    policy.write_text(terms.replace("ssim = 0.2", "ssim = 0.99"))
    (find,) = commands("ci_gate/find.sh")
    (check,) = commands("ci_gate/check.sh")
    assert cli.run([*find, "--repetitions", "2"]) in (0, 6)
    assert cli.run(check) == 0
    assert "privacy" in (here / "summary.md").read_text()
    policy.write_text(terms.replace("ssim = 0.2", "ssim = 0.000001"))
    assert cli.run(check) == 4


def test_the_committed_split_config_is_that_of_the_gate():
    folder = EXAMPLES / "ci_gate"
    (entry,) = settings.read(folder / "partopt.toml").entries()
    found = SplitConfig.read(entry.split)
    assert found.model.spec == entry.model
    assert (found.privacy.threshold, found.privacy.budget) == (entry.ssim, entry.budget)
    assert [row.name for row in found.cuts] == entry.cuts
    assert found.cut is not None


def test_gate_workflow_names_the_action_and_its_inputs():
    action = yaml.safe_load((EXAMPLES.parent / "action.yml").read_text())
    workflow = yaml.safe_load((EXAMPLES / "ci_gate" / "workflow.yml").read_text())
    (step,) = [s for s in workflow["jobs"]["gate"]["steps"] if "/partopt@" in s["uses"]]
    assert set(step["with"]) <= set(action["inputs"])


def test_deploying(here, capsys):
    find, export, run = commands("deploying/deploy.sh")
    assert cli.run([*find, "--ssim", "1", "--repetitions", "2"]) in (0, 6)
    assert cli.run([*export, "--even-if-slower"]) == 0
    capsys.readouterr()
    assert cli.run([*run, "--json"]) == 0
    assert loaded_answer(here) in capsys.readouterr().out


def fleet_commands() -> tuple[list[str], dict[str, list[str]]]:
    """The search, and the workers of each example by its file."""
    folder = EXAMPLES / "fleet"
    (find,) = commands("fleet/find.sh")
    found = {}
    for name in ("slurm.sh", "gpus.sh"):
        text = (folder / name).read_text().replace("\\\n", " ")
        (line,) = [x.strip() for x in text.splitlines() if "partopt worker " in x]
        found[name] = shlex.split(line.removeprefix("exec ").removesuffix("&"))[1:]
    job = yaml.safe_load((folder / "kubernetes.yml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["partopt", "worker"]
    assert {"name": "photos", "mountPath": "/photos", "readOnly": True} in container["volumeMounts"]
    found["kubernetes.yml"] = ["worker", *container["args"]]
    return find, found


def test_every_worker_of_the_fleet_is_told_the_inputs_of_its_search():
    find, workers = fleet_commands()
    command = typer.main.get_command(cli.app).commands
    wanted = command["find"].make_context("find", find[1:]).params
    for name, told in workers.items():
        found = command["worker"].make_context("worker", told[1:]).params
        for option in ("model", "weights", "mean", "std", "input_size"):
            assert found[option] == wanted[option], (name, option)
        assert str(found["data"]).strip("/") == str(wanted["data"]) == "photos"
        assert found["idle"] > 0


def test_fleet(here, monkeypatch):
    """The search in this process, a worker of the array in one of its own."""
    find, workers = fleet_commands()
    storage = str(here / "fleet.journal")
    monkeypatch.setenv("PARTOPT_STORAGE", storage)
    monkeypatch.setenv("PYTHONPATH", str(here))
    run = [sys.executable, "-W", "ignore", "-m", "partopt", *workers["slurm.sh"]]
    with subprocess.Popen(run, stderr=subprocess.PIPE, text=True) as worker:
        code = cli.run([*find, "--ssim", "1", "--repetitions", "1", "--resolution", "32"])
        worker.terminate()
        said = worker.communicate(timeout=60)[1]
    assert code in (0, 6)
    assert worker.returncode == 0, "told to stop, it ends in order"
    found = SplitConfig.read("network.split.json")
    assert f"{found.search.trials_run} attacks made" in said
    assert found.cut is not None


def loaded_answer(folder: Path) -> str:
    """The class that the unsplit network gives the picture, as `run` prints it."""
    from partopt.models.load import load_model

    model = load_model("network:make", weights="none", input_size=64, mean=[0.5], std=[0.5])
    unit = model.preprocessing.to_unit(Image.open(folder / "photo.png"))
    x = model.preprocessing.normalise(torch.from_numpy(unit.copy())[None].float() / 255)
    with torch.inference_mode():
        return str(int(model.module(x).argmax()))
