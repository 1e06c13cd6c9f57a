"""Real processes on a real PostgreSQL, killed with kill -9: see `killing`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("killing.py")


def killed(url, folder, workers, kills, **environment):
    env = {**os.environ, "PARTOPT_CACHE": str(folder), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-W", "ignore", str(PROGRAM), url, str(workers), str(kills), "7"]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


def hold(found, kills):
    """Answer and every stored score are one process's; nothing is lost, made twice or left."""
    alone, fleet = found["alone"], found["fleet"]
    assert fleet["whole"] == alone["whole"]
    assert set(alone["results"]) <= set(fleet["results"])
    assert all(len(held) == 1 for held in fleet["results"].values()), "made twice to the end"
    for key, (held,) in alone["results"].items():
        assert fleet["results"][key] == [held]
    assert not {"RUNNING", "WAITING"} & found["states"].keys(), found["states"]
    struck = found["killed"]
    assert struck["not yet"] == 0, "it ended before all were killed"
    assert struck["workers"] + struck["coordinators"] == kills


def test_who_is_killed_changes_nothing(postgres, tmp_path):
    found = killed(postgres(), tmp_path, 2, 4, LAYERS="0", TOOK="0.3", EVERY="0.5")
    hold(found, 4)


@pytest.mark.slow
def test_eight_workers_and_their_coordinator_are_killed_fifty_times(postgres, tmp_path):
    found = killed(postgres(), tmp_path, 8, 50, LAYERS="24", TOOK="6", EVERY="1.6")
    hold(found, 50)
    assert found["states"].get("FAIL", 0) >= 5, "it was to hit workers at work"
    assert found["killed"]["coordinators"] >= 3
