"""ONNX Runtime is loaded without its package, and tells nobody anything."""

from __future__ import annotations

import subprocess
import sys

import torch

from partopt.enclave_runner.lowering.model import lowered
from partopt.enclave_runner.program.recording import record

CODE = """
import os, sys
from pathlib import Path
from partopt.enclave_runner.program.ort_runtime import How, Session
import numpy as np
session = Session(Path(sys.argv[1]).read_bytes(), How())
for _ in range(3):
    session.run({"x0": np.zeros((1, 3, 4, 4), np.float32)})
assert "onnxruntime" not in sys.modules and "onnx" not in sys.modules
print(len(os.listdir("/proc/self/task")))
print(*(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{n}")))
"""


def test_a_session_leaves_no_file_and_opens_no_connection(tmp_path):
    """Unless it is told otherwise, ONNX Runtime keeps a data base of what it would send home."""
    x = torch.zeros(2, 3, 4, 4)
    model = tmp_path / "m.onnx"
    model.write_bytes(lowered(record(torch.nn.ReLU().eval(), [x], True), [x], True))
    home = tmp_path / "home"
    home.mkdir()
    told = subprocess.run(
        [sys.executable, "-I", "-c", CODE, str(model)],
        env={
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / ".cache"),
            "OPENBLAS_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    threads, opened = told.stdout.splitlines()
    assert not list(home.rglob("*"))
    assert int(threads) == 1
    assert "socket" not in opened
    assert ".db" not in opened
