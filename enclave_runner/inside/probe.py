"""The profile worker: runs a program when asked and says when it passed the cuts.

    python -m partopt.enclave_runner.inside.probe FOLDER

Started by the same launcher as the head worker, natively or inside Gramine, so that what it
measures is what the runner will take. Inputs are noise; weights that are secret come sealed, with
their key on the control connection.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load

from ...errors import PartoptError
from ..program.parts import PROGRAM, WEIGHTS
from ..program.programs import Program
from ..program.sealing import unseal
from ..program.timed import passed
from ..wire.messages import Control


def main(folder: Path) -> None:
    """Serve until the profiler hangs up."""
    control = Control.dial()
    try:
        start = control.read() or {}
        torch.set_num_threads(int(start["threads"]))
        begun = time.perf_counter()
        program, example = prepare(
            folder, start["shape"], start["seed"], start["device"], bytes.fromhex(start["key"])
        )
        loaded = time.perf_counter() - begun
    except (PartoptError, OSError, KeyError, ValueError, RuntimeError) as error:
        control.send(event="failed", error=f"{type(error).__name__}: {str(error)[:300]}")
        os._exit(1)
    control.send(event="ready", load_s=loaded)
    marks = [int(m) for m in start["marks"]]
    while control.read() is not None:
        control.send(event="pass", **passed(program, example, marks))
    os._exit(0)


start = main


def prepare(
    folder: Path, shape: list[int], seed: int, device: str, key: bytes
) -> tuple[Program, torch.Tensor]:
    """The program in `folder` with its weights, sealed if there is a key; an input of noise."""
    program = Program.from_json((folder / PROGRAM).read_bytes())
    weights = (folder / WEIGHTS).read_bytes()
    program.load(load(unseal(weights, key, WEIGHTS) if key else weights), device)
    generator = torch.Generator().manual_seed(seed)
    return program, torch.rand(shape, generator=generator).to(device)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
