"""Cumulative time at every cut from one forward pass per repetition."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..enclave_runner.probing import Probe, marked
from ..enclave_runner.program.cooling import cool
from ..enclave_runner.program.programs import Program
from ..errors import ExportError
from ..graph.build import Cut, LayerGraph
from ..graph.splitting import instrument


@dataclass(frozen=True)
class Cumulative:
    """Seconds from the start of the pass: ``at`` (repetitions, cuts) and ``end`` (repetitions,)."""

    at: np.ndarray
    end: np.ndarray


@dataclass
class Subject:
    """What is timed: the model as the runner would run it, its cuts and an input.

    A model that cannot be written as a program is timed as it was traced, on the host alone.
    """

    graph: LayerGraph
    cuts: Sequence[Cut]
    example: torch.Tensor
    program: Program | None = None
    marks: list[int] = field(default_factory=list)
    reason: str = ""
    dynamic: bool = False

    @classmethod
    def of(cls, graph: LayerGraph, cuts: Sequence[Cut], example: torch.Tensor) -> Subject:
        """Record the model."""
        dynamic = graph.fixed_batch is None and len(example) != graph.inputs[0].shape[0]
        try:
            program, marks = marked(graph, cuts, dynamic)
        except ExportError as error:
            return cls(graph, cuts, example, reason=str(error))
        return cls(graph, cuts, example, program, marks, dynamic=dynamic)


class Rows:
    """Collects the readings of passes."""

    def __init__(self) -> None:
        self._at: list[Sequence[float]] = []
        self._end: list[float] = []

    def add(self, at: Sequence[float], end: float) -> None:
        """Keep one pass: seconds at each cut, and in all."""
        self._at.append(at)
        self._end.append(end)

    def result(self) -> Cumulative:
        """All kept repetitions."""
        return Cumulative(np.asarray(self._at).reshape(len(self._end), -1), np.asarray(self._end))

    def close(self) -> None:
        """Nothing is held."""


class HostPass(Rows):
    """Passes of the whole model on the host's CPU, in this process."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self._read = _reader(subject, time.perf_counter, "cpu")

    def once(self, keep: bool = True) -> None:
        """Run once; `keep` is False for warm-up."""
        start, at, end = self._read()
        if keep:
            self.add([t - start for t in at], end - start)


class CudaPass(Rows):
    """The same on a CUDA device, marked by CUDA events in the stream."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()

        def mark() -> torch.cuda.Event:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event

        self._read = _reader(subject, mark, "cuda")

    def once(self, keep: bool = True) -> None:
        """Run once and wait for the device."""
        start, at, end = self._read()
        torch.cuda.synchronize()
        if keep:
            self.add([start.elapsed_time(t) / 1e3 for t in at], start.elapsed_time(end) / 1e3)


class WorkerPass(Rows):
    """Passes in a worker inside Gramine, started by the runner's own launcher.

    Attributes:
        probe: The worker; knows its start, load time and peak memory.
    """

    def __init__(self, subject: Subject, backend: str) -> None:
        super().__init__()
        if subject.program is None:
            raise ExportError(f"this model cannot be profiled inside Gramine: {subject.reason}")
        self.probe = Probe(
            subject.program,
            subject.marks,
            subject.example.shape,
            backend=backend,
            threads=torch.get_num_threads(),
        )

    def once(self, keep: bool = True) -> None:
        """Run once; `keep` is False for warm-up."""
        at, end = self.probe.once()
        if keep:
            self.add(at, end)

    def close(self) -> None:
        """End the worker."""
        self.probe.close()


def _reader(
    subject: Subject, clock: Callable[[], Any], device: str
) -> Callable[[], tuple[Any, list[Any], Any]]:
    """A function that runs one pass and gives the clock's readings: start, at each cut, end."""
    example = subject.example.to(device)
    if subject.program is None:
        module = instrument(subject.graph, subject.cuts, clock).to(device)

        def traced() -> tuple[Any, list[Any], Any]:
            cool()
            with torch.inference_mode():
                _, (start, *at, end) = module(example)
            return start, at, end

        return traced
    source = subject.program
    program = Program(source.inputs, source.constants, source.steps, source.outputs)
    program.load(source.tensors, device)
    marks = dict.fromkeys(subject.marks)

    def recorded() -> tuple[Any, list[Any], Any]:
        cool()
        start = clock()
        _, read = program.run((example,), marks, clock)
        return start, [read.get(m, start) for m in subject.marks], clock()

    return recorded


Pass = HostPass | CudaPass | WorkerPass
PassFactory = Callable[[Subject], Pass]
