"""The profile worker with ONNX Runtime: runs a model when asked, and says how its time is spent.

    python -m partopt.enclave_runner.inside.ort_probe FOLDER

Inside a pass no clock can be read. What each operator takes of it is ONNX Runtime's own account of
some passes before; the passes that count are timed without it.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from ..program.cooling import cool
from ..program.onnx_held import held, sizes
from ..program.ort_runtime import How, Session
from ..program.parts import WEIGHTS_OF
from ..program.sealing import unseal
from ..program.trial import noise
from ..wire.messages import Control

_PASSES = 12


def start(folder: Path) -> None:
    """Serve until the profiler hangs up."""
    control = Control.dial()
    try:
        said = control.read() or {}
        begun = time.perf_counter()
        shape, threads = [int(n) for n in said["shape"]], int(said["threads"])
        model = opened(folder, shape, bytes.fromhex(said["key"]))
        spent = accounted(model, shape, threads)
        session = Session(model, How(threads=threads))
        del model
        given = {"x0": noise(shape)}
        session.run(given)
        loaded = time.perf_counter() - begun
    except Exception as error:  # ONNX Runtime's errors have no common class
        control.send(event="failed", error=f"{type(error).__name__}: {str(error)[:300]}")
        os._exit(1)
    control.send(event="ready", load_s=loaded, spent=spent)
    while control.read() is not None:
        cool()
        begun = time.perf_counter()
        session.run(given)
        control.send(event="pass", at=[], end=time.perf_counter() - begun)
    os._exit(0)


def opened(folder: Path, shape: list[int], key: bytes) -> bytes:
    """The model in `folder`, looked at; sealed if there is a key.

    Raises:
        BundleError: It is none that export writes.
    """
    name = WEIGHTS_OF["ort"]
    data = (folder / name).read_bytes()
    if key:
        data = unseal(data, key, name)
    sizes(held(data), {"x0": shape})
    return data


def accounted(model: bytes, shape: list[int], threads: int) -> list[float]:
    """Median seconds of each operator, in the model's order; operators are named n0, n1, ..."""
    count = len(held(model).nodes)
    # Inside Gramine the root is the enclave's own memory.
    place = "/" if os.environ.get("PARTOPT_BACKEND") == "gramine" else "/dev/shm/"
    session = Session(model, How(threads=threads, profile=f"{place}partopt-{os.getpid()}"))
    for _ in range(_PASSES):
        cool()
        session.run({"x0": noise(shape)})
    path = Path(session.end_profiling())
    try:
        events: list[dict[str, Any]] = json.loads(path.read_bytes())
    finally:
        path.unlink(missing_ok=True)
    seen: list[list[float]] = [[] for _ in range(count)]
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            number = name.removeprefix("n").removesuffix("_kernel_time")
            if number.isdigit() and int(number) < count:
                seen[int(number)].append(float(event["dur"]) / 1e6)
    # The first passes find nothing in the caches.
    return [statistics.median(s[2:] or s) if s else 0.0 for s in seen]


if __name__ == "__main__":
    start(Path(sys.argv[1]))
