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
        "CONFIG": "partopt.toml",
        "DATA": "",
        "BUDGET": "",
        "ARGS": "--no-latency",
        "REF": "",
        "BASE": str(folder / "base"),
        "REATTACK": "false",
        "SUMMARY": str(folder / "summary.md"),
        "GITHUB_STEP_SUMMARY": str(folder / "job.md"),
        **env,
    }
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", step("Check")],
        env=values,
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_settings_file_and_summary(fake):
    done = run(fake, DATA="my photos", BUDGET="standard")
    assert done.returncode == 0, done.stderr
    assert (fake / "args").read_text().splitlines() == [
        "check",
        "--no-latency",
        "--data",
        "my photos",
        "--budget",
        "standard",
        "--config",
        "partopt.toml",
        "--markdown",
        str(fake / "summary.md"),
        "--",
    ]
    assert (fake / "job.md").read_text() == "## verdict\n"


def test_a_pattern_of_configs_and_a_failing_check(fake):
    for name in ("a.split.json", "b.split.json"):
        (fake / name).touch()
    done = run(fake, CONFIG="*.split.json", CODE="4")
    assert done.returncode == 4
    # Behind `--`: a pull request may call a file like an option.
    assert (fake / "args").read_text().splitlines()[-3:] == ["--", "a.split.json", "b.split.json"]
    assert (fake / "job.md").exists()


def test_a_file_called_like_an_option_is_a_file(fake):
    (fake / "--config=lax.split.json").touch()
    run(fake, CONFIG="*.split.json")
    assert (fake / "args").read_text().splitlines()[-2:] == ["--", "--config=lax.split.json"]


def test_the_policy_of_a_pull_request_is_that_of_the_base(fake):
    (fake / "base" / "sub").mkdir(parents=True)
    for name in ("partopt.toml", "sub/partopt.toml"):
        (fake / "base" / name).touch()
    run(fake, REF="0123", CONFIG="sub/partopt.toml")
    args = (fake / "args").read_text().splitlines()
    at = args.index("--config")
    base = str(fake / "base" / "sub" / "partopt.toml")
    assert args[at : at + 4] == ["--config", base, "--under-test", "sub"]
    run(fake, REF="0123", CONFIG="*.split.json", REATTACK="true")
    args = (fake / "args").read_text().splitlines()
    assert "--reattack" in args
    at = args.index("--config")
    assert args[at + 1] == str(fake / "base" / "partopt.toml")


def test_a_base_without_a_policy_is_no_reason_to_take_that_of_the_change(fake):
    (fake / "partopt.toml").touch()
    (fake / "a.split.json").touch()
    done = run(fake, REF="0123")
    assert done.returncode == 1
    assert "in a pull request of its own" in done.stdout
    assert not (fake / "args").exists()
    run(fake, REF="0123", CONFIG="*.split.json")
    args = (fake / "args").read_text().splitlines()
    assert args[args.index("--config") + 1] == "none"


def git(folder: Path, *words: str) -> str:
    name = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", *name, *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_base_is_checked_out_beside_the_change(tmp_path):
    origin, work = tmp_path / "origin", tmp_path / "work"
    origin.mkdir()
    git(origin, "init", "-q")
    (origin / "partopt.toml").write_text("ssim = 0.2\n")
    git(origin, "add", ".")
    git(origin, "commit", "-qm", "base")
    base = git(origin, "rev-parse", "HEAD")
    git(tmp_path, "clone", "-q", str(origin), str(work))
    (work / "partopt.toml").write_text("ssim = 0.99\n")
    git(work, "commit", "-qam", "change")
    for _ in range(2):  # a runner may be used again
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", step("Policy")],
            cwd=work,
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "REF": base, "BASE": str(tmp_path / "b")},
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "b" / "partopt.toml").read_text() == "ssim = 0.2\n"
    assert (work / "partopt.toml").read_text() == "ssim = 0.99\n"


def test_what_runs_of_pull_requests_made_is_not_kept():
    text = (ROOT / "action.yml").read_text()
    save = text[text.index("actions/cache/save@v4") :]
    assert "'push'" in save
    assert "pull_request" not in save
    assert "actions/cache@v4" not in text, "it saves whatever the event"
    for block in text.split("actions/cache/")[1:]:
        assert "partopt-cache/features" not in block
        assert "reattack != 'true'" in block


def test_inputs_are_never_pasted_into_the_script():
    """What a pull request controls reaches the shell as environment, not as text."""
    assert "${{" not in step("Check")
    assert "${{" not in step("Policy")
    assert "${{" not in step("Install partopt")
