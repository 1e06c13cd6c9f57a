"""The study opens in optuna-dashboard as it is."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from partopt.cache import cache_dir
from partopt.images.load import Split
from partopt.optimizer.budgets import BUDGETS
from partopt.optimizer.find import find

PROGRAM = shutil.which("optuna-dashboard") or str(
    Path(sys.executable).with_name("optuna-dashboard")
)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def get(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


@pytest.mark.skipif(not Path(PROGRAM).exists(), reason="extra [dashboard] is not installed")
def test_trials_and_reconstructions_are_shown(tiny_loaded, monkeypatch):
    budget = replace(
        BUDGETS["quick"],
        split=Split(48, 12, 16),
        resolution=32,
        minimum_images=20,
        settings={"linear": {"max_cells": 4000}},
    )
    monkeypatch.setitem(BUDGETS, "quick", budget)
    result = find(tiny_loaded, repetitions=1)
    port = free_port()
    server = subprocess.Popen(
        [
            PROGRAM,
            str(cache_dir("studies") / "partopt.journal"),
            "--port",
            str(port),
            "--artifact-dir",
            str(cache_dir("artifacts")),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        base = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                studies = get(f"{base}/api/studies")["study_summaries"]
                break
            except OSError:
                time.sleep(0.2)
        names = [study["study_name"] for study in studies]
        assert len(names) == 2, "the search's and the sweep's"
        study = studies[names.index(result.config.search.study)]
        detail = get(f"{base}/api/studies/{study['study_id']}?after=0")
        trials = [t for t in detail["trials"] if t["state"] == "Complete"]
        assert len(trials) == len(result.cuts)
        attributes = {a["key"] for a in trials[0]["user_attrs"]}
        assert {"cut_index", "cut_name", "score", "ssim_raw"} <= attributes
        assert all(t["artifacts"] for t in trials)
        one = trials[0]["artifacts"][0]["artifact_id"]
        url = f"{base}/artifacts/{study['study_id']}/{trials[0]['trial_id']}/{one}"
        with urllib.request.urlopen(url, timeout=5) as picture:
            assert picture.read(4) == b"\x89PNG"
    finally:
        server.terminate()
        server.wait(10)
