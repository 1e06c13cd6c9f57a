"""Worker processes on the coordinator's own machine, which end when it does."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from ..errors import StorageError, UsageError
from ..graph.traceargs import Tracing
from ..models.load import LoadedModel
from ..notices import notice
from .coordinator import Helpers
from .requests import FindRequest

STORAGE_VARIABLE = "PARTOPT_STORAGE"  # a password in it must not stand in a list of processes
_RESTARTS = 100
_END_S = 20.0


def arguments(request: FindRequest) -> list[str]:
    """The options of a `partopt worker` with the inputs of a run.

    Raises:
        UsageError: The model is one that only this process has.
    """
    model = request.model
    if isinstance(model, LoadedModel):
        raise UsageError(
            f"`workers` got {request.effort.workers} with a loaded model, which no other process "
            "can load; give the model by its name, or 0 and start partopt worker yourself"
        )
    found = ["--model", model.spec, "--weights", model.weights, "--seed", str(model.seed)]
    if request.images.data is not None:
        found += ["--data", str(request.images.data)]
    for name, values in (("--mean", model.mean), ("--std", model.std)):
        if values is not None:
            found += [f"{name}={','.join(repr(float(v)) for v in values)}"]
    if model.input_size is not None:
        found += ["--input-size", str(model.input_size)]
    if model.require_weights:
        found.append("--require-weights")
    if model.trust_model:
        found.append("--trust-model")
    found += ["--accelerator", request.timing.accelerator]
    found += ["--feature-cache", repr(request.feature_cache_gib)]
    found += _tracing(model.tracing)
    if request.artifacts is not None:
        found += ["--artifacts", request.artifacts]
    return found


def _tracing(tracing: Tracing) -> list[str]:
    """The same fixed arguments and leaf modules for another process."""
    values = [f"{n}={v!r}" for n, v in tracing.concrete_args.items()]
    found = []
    if any("," in value for value in values):
        raise UsageError(
            f"`concrete_args` got {values[0]!r}, which no worker can be told since it holds a "
            "comma; leave --workers out"
        )
    if values:
        found += ["--concrete-args", ",".join(values)]
    if tracing.leaf_modules:
        found += ["--leaf-modules", ",".join(tracing.leaf_modules)]
    return found


class LocalWorkers(Helpers):
    """So many worker processes; as a context, which ends them.

    Args:
        count: How many.
        options: Of each, as `arguments` gives them.
        storage: The storage's URL or file.
    """

    def __init__(self, count: int, options: Sequence[str], storage: str) -> None:
        self.count = count
        self._command = [sys.executable, "-m", "partopt", "worker", "--until-eof", *options]
        path = storage if "://" in storage else str(Path(storage).absolute())
        self._environment = {**os.environ, STORAGE_VARIABLE: path}
        self._running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
        self._left = _RESTARTS

    def __enter__(self) -> LocalWorkers:
        for _ in range(self.count):
            self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for process, _said in self._running:
            if kind is not None:
                process.terminate()  # it gives back what it is at
            if process.stdin is not None:
                process.stdin.close()  # it ends when it reads that
        for process, said in self._running:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            said.close()

    def _start(self) -> None:
        said = tempfile.TemporaryFile()  # noqa: SIM115, closed when the worker has ended
        process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        self._running.append((process, said))

    def check(self) -> None:
        """Start those again that were killed.

        Raises:
            StorageError: One ended by itself; with what it said.
        """
        for process, said in list(self._running):
            code = process.poll()
            if code is None:
                continue
            self._running.remove((process, said))
            if process.stdin is not None:
                process.stdin.close()
            said.seek(0)
            text = said.read()[-4000:].decode(errors="replace")
            said.close()
            if code >= 0 or not self._left:
                lines = [line for line in text.splitlines() if line.strip()]
                last = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
                raise StorageError(f"a worker of this run ended: {last[:400]}")
            self._left -= 1
            notice(f"a worker of this run was killed (signal {-code}); another one is started")
            self._start()
