"""The composite action's shell lines, run as the action would run them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def step(name: str) -> str:
    """The script of a named step of action.yml."""
    text = (ROOT / "action.yml").read_text()
    block = text[text.index(f"- name: {name}") :]
    match = re.search(r"      run: \|\n((?:        .*\n?)+)", block)
    assert match
    return "\n".join(line[8:] for line in match.group(1).splitlines())


@pytest.fixture
def fake(tmp_path) -> Path:
    """A partopt that notes its arguments and exits as told."""
    program = tmp_path / "bin" / "partopt"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/bash\nprintf '%s\\n' \"$@\" > args\n"
        'while [[ $# -gt 0 ]]; do [[ $1 == --markdown ]] && echo "## verdict" > "$2"; shift; done\n'
        "exit ${CODE:-0}\n"
    )
    program.chmod(0o755)
    return tmp_path


def run(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    values = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "CONFIG": "partopt.toml", "DATA": "", "BUDGET": "", "ARGS": "--no-latency",
        "SUMMARY": str(folder / "summary.md"), "GITHUB_STEP_SUMMARY": str(folder / "job.md"),
        **env,
    }  # fmt: skip
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", step("Check")],
        env=values, cwd=folder, capture_output=True, text=True,
    )  # fmt: skip


def test_settings_file_and_summary(fake):
    done = run(fake, DATA="my photos", BUDGET="standard")
    assert done.returncode == 0, done.stderr
    assert (fake / "args").read_text().splitlines() == [
        "check", "--no-latency", "--config", "partopt.toml", "--data", "my photos",
        "--budget", "standard", "--markdown", str(fake / "summary.md"),
    ]  # fmt: skip
    assert (fake / "job.md").read_text() == "## verdict\n"


def test_a_pattern_of_configs_and_a_failing_check(fake):
    for name in ("a.split.json", "b.split.json"):
        (fake / name).touch()
    done = run(fake, CONFIG="*.split.json", CODE="4")
    assert done.returncode == 4
    assert (fake / "args").read_text().splitlines()[2:4] == ["a.split.json", "b.split.json"]
    assert (fake / "job.md").exists()


def test_inputs_are_never_pasted_into_the_script():
    """What a pull request controls reaches the shell as environment, not as text."""
    assert "${{" not in step("Check")
    assert "${{" not in step("Install partopt")
