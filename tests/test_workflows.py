"""The workflows parse, run targets that the Makefile has, and install what is declared."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def jobs() -> dict[str, dict]:
    return {
        f"{path.name}: {name}": job
        for path in WORKFLOWS
        for name, job in yaml.safe_load(path.read_text())["jobs"].items()
    }


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


def test_there_are_workflows():
    assert WORKFLOWS


@pytest.mark.parametrize("name", jobs())
def test_every_run_is_a_target_of_the_makefile(name):
    for step in jobs()[name]["steps"]:
        if "run" in step:
            words = step["run"].split()
            assert words[0] == "make"
            assert set(words[1:]) <= targets(), step["run"]


@pytest.mark.parametrize("name", jobs())
def test_actions_are_pinned_by_major_version(name):
    for step in jobs()[name]["steps"]:
        if "uses" in step and step["uses"] != "./":
            assert re.fullmatch(r"[\w-]+/[\w/-]+@v\d+", step["uses"]), step["uses"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_workflows_may_only_read(path):
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}


def test_all_declared_pythons_are_tested():
    declared = {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if "Python :: 3." in c}
    (tests,) = [job for name, job in jobs().items() if name.endswith(": tests")]
    assert set(tests["strategy"]["matrix"]["python-version"]) == declared


def test_the_repositorys_action_is_run_on_settings_that_exist():
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    (step,) = [s for job in jobs().values() for s in job["steps"] if s.get("uses") == "./"]
    assert set(step["with"]) <= set(action["inputs"])
    assert (ROOT / step["with"]["config"]).is_file()


def test_every_tool_of_the_makefiles_extras_is_constrained():
    pinned = {x.split("==")[0] for x in (ROOT / "constraints.txt").read_text().splitlines()}
    extras = [r for group in PROJECT["optional-dependencies"].values() for r in group]
    for requirement in [*PROJECT["dependencies"], *extras]:
        name = re.split(r"[\[<>=]", requirement)[0]
        assert name in pinned | {"partopt"}, requirement


def test_every_target_says_what_it_does():
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)", text, re.M)
    assert set(phony.split()) == targets()
    for target in phony.split():
        assert re.search(rf"^{target}:.* ## \w", text, re.M), target


def test_one_version_everywhere():
    import partopt

    assert PROJECT["version"] == partopt.__version__
    assert f"\n## {partopt.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_pre_commit_hooks_are_the_linters():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = (ROOT / "Makefile").read_text()
    for hook in hooks:
        tool = hook["entry"].removeprefix(".venv/bin/")
        assert tool in lint or tool == "make lint", hook["entry"]
