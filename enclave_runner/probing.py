"""Run a whole model in a worker of its own, and read the cumulative time at every cut."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save

from ..errors import ServiceError
from ..graph.build import LayerGraph
from ..graph.nodes import Cut
from ..graph.splitting import observe
from .bundles.footprint import rehearse
from .bundles.manifest import GramineWorker, size_enclave
from .bundles.signing import sign
from .launcher import MANIFEST, launch_gramine, launch_python, written
from .lowering.accounting import Accounted
from .program.parts import PROGRAM, WEIGHTS, WEIGHTS_OF
from .program.programs import Program, with_frees
from .program.recording import record
from .program.sealing import new_key, seal
from .wire import areas


def marked(graph: LayerGraph, cuts: Sequence[Cut], dynamic: bool) -> tuple[Program, list[int]]:
    """The whole model as a program, and the step after which each cut lies.

    Raises:
        ExportError: The model cannot be written as a program.
    """
    example = torch.zeros(graph.inputs[0].shape)
    program = record(observe(graph, cuts), [example], dynamic)
    answers = len(program.outputs) - len(cuts)
    first = len(program.inputs) + len(program.constants)
    marks = [index - first for index in program.outputs[answers:]]
    outputs = program.outputs[:answers]
    steps = with_frees(program.steps, outputs, first)
    whole = Program(program.inputs, program.constants, steps, outputs)
    return whole.load(program.tensors), marks


@dataclass(frozen=True)
class _Job:
    """A profile worker: its module, what writes its folder, the files there, what it is told."""

    module: str
    write: Callable[[Path], None]
    names: Sequence[str]
    told: dict[str, Any]


class _Probe:
    """A profile worker that runs, as a context manager; see `Probe`."""

    def __init__(
        self, job: _Job, shape: Sequence[int], *, backend: str, threads: int, key: bytes
    ) -> None:
        module = f"enclave_runner.inside.{job.module}"
        self._own = contextlib.ExitStack()
        self.peak_bytes = 0
        try:
            # What a killed run left there is swept out by the next.
            place = areas.Place(areas.scratch_folder(), secrets.token_hex(8))
            self._own.callback(place.leave)
            folder = place.folder("probe")
            job.write(folder)
            if backend != "native":
                worker = _worker(folder, job, shape, threads, key)
                if backend == "gramine-sgx":
                    sign(folder, worker, None)
                    manifest = folder / MANIFEST
                else:
                    manifest = written(worker, folder, folder)
            begun = time.perf_counter()
            self._worker = (
                launch_python(module, str(folder))
                if backend == "native"
                else launch_gramine(backend, folder, manifest)
            )
            self._own.callback(self._worker.stop)
            self.start_s = time.perf_counter() - begun
            self._worker.control.send(threads=threads, shape=list(shape), key=key.hex(), **job.told)
            self.ready = self._event("ready")
            self.load_s = float(self.ready["load_s"])
        except BaseException:
            self._own.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker."""
        self._own.close()

    def once(self) -> tuple[list[float], float]:
        """One pass: seconds at each mark, and in all."""
        self._worker.control.send(do="pass")
        event = self._event("pass")
        self.peak_bytes = max(self.peak_bytes, _peak(self._worker.process.pid))
        return [float(t) for t in event["at"]], float(event["end"])

    def _event(self, wanted: str) -> dict[str, Any]:
        event = self._worker.control.read()
        if event is None or event.get("event") != wanted:
            said = (event or {}).get("error") or self._worker.said().strip()[-300:] or "nothing"
            raise ServiceError("probe", f"the profile's worker failed, it said: {said}")
        return event


class Probe(_Probe):
    """A worker that runs one program on request, as a context manager.

    Args:
        program: With its tensors.
        marks: Steps at which to read the clock.
        shape: Of the input.
        backend: ``native``, ``gramine-direct`` or ``gramine-sgx``.
        threads: Compute threads inside.
        device: ``cpu`` or ``cuda`` (native only).
        seed: For the input.
        sealed: The weights are secret: on the disk they lie under a key of this run alone.

    Attributes:
        start_s: Seconds from launch until the worker's code ran (enclave and imports).
        load_s: Seconds it took to load the program.
        peak_bytes: Peak memory of the worker as the host sees it.
    """

    def __init__(
        self,
        program: Program,
        marks: Sequence[int],
        shape: Sequence[int],
        *,
        backend: str,
        threads: int,
        device: str = "cpu",
        seed: int = 0,
        sealed: bool = False,
    ) -> None:
        key = new_key() if sealed else b""
        told = {"seed": seed, "device": device, "marks": list(marks)}
        super().__init__(
            _Job("probe", lambda folder: _write(folder, program, key), (PROGRAM, WEIGHTS), told),
            shape,
            backend=backend,
            threads=threads,
            key=key,
        )


class OrtProbe(_Probe):
    """The same of a whole model by ONNX Runtime; heads' times are shares of a timed pass.

    Args:
        accounted: The model, and whose operators each head has run.
        shape: Of the input.
        backend, threads: As in `Probe`.
    """

    def __init__(
        self, accounted: Accounted, shape: Sequence[int], *, backend: str, threads: int
    ) -> None:
        name = WEIGHTS_OF["ort"]

        def write(folder: Path) -> None:
            (folder / name).write_bytes(accounted.model)

        job = _Job("ort_probe", write, (name,), {})
        super().__init__(job, shape, backend=backend, threads=threads, key=b"")
        self._shares = accounted.shares([float(s) for s in self.ready["spent"]])

    def once(self) -> tuple[list[float], float]:
        """One pass: seconds at each mark, by their shares, and in all."""
        _, end = super().once()
        return [share * end for share in self._shares], end


def _write(folder: Path, program: Program, key: bytes) -> None:
    (folder / PROGRAM).write_text(program.to_json())
    weights = save({n: t.clone().contiguous() for n, t in program.tensors.items()})
    (folder / WEIGHTS).write_bytes(seal(weights, key, WEIGHTS) if key else weights)


def _worker(
    folder: Path, job: _Job, shape: Sequence[int], threads: int, key: bytes
) -> GramineWorker:
    seen = rehearse(folder, 0, key, shape)
    enclave_size, max_threads = size_enclave(seen, threads)
    return GramineWorker(
        module=f"enclave_runner.inside.{job.module}",
        folder=str(folder),
        names=job.names,
        trusted=False,
        files=seen.files,
        prefixes=seen.prefixes,
        enclave_size=enclave_size,
        max_threads=max_threads,
    )


def _peak(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status") as file:
            return next((int(v.split()[1]) * 1024 for v in file if v.startswith("VmHWM:")), 0)
    except OSError:
        return 0
