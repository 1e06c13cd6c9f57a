"""Cumulative time at every cut from one forward pass per repetition."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..graph import Cut, LayerGraph
from ..splitting import instrument


@dataclass(frozen=True)
class Cumulative:
    """Seconds from the start of the pass: ``at`` (repetitions, cuts) and ``end`` (repetitions,)."""

    at: np.ndarray
    end: np.ndarray


class HostPass:
    """One instrumented pass of the whole model on the host's CPU, as often as asked."""

    def __init__(self, graph: LayerGraph, cuts: Sequence[Cut], example: torch.Tensor) -> None:
        self._module = instrument(graph, cuts, time.perf_counter)
        self._example = example
        self._rows: list[list[float]] = []

    def once(self, keep: bool = True) -> None:
        """Run once; `keep` is False for warm-up."""
        with torch.inference_mode():
            _, marks = self._module(self._example)
        if keep:
            self._rows.append([m - marks[0] for m in marks[1:]])

    def result(self) -> Cumulative:
        """All kept repetitions."""
        rows = np.asarray(self._rows)
        return Cumulative(rows[:, :-1], rows[:, -1])


class CudaPass:
    """The same on a CUDA device, marked by CUDA events in the stream."""

    def __init__(self, graph: LayerGraph, cuts: Sequence[Cut], example: torch.Tensor) -> None:
        def mark() -> torch.cuda.Event:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event

        self._module = instrument(graph, cuts, mark).to("cuda")
        self._example = example.to("cuda")
        self._rows: list[list[float]] = []

    def once(self, keep: bool = True) -> None:
        """Run once and wait for the device."""
        with torch.inference_mode():
            _, marks = self._module(self._example)
        torch.cuda.synchronize()
        if keep:
            start, *rest = marks
            self._rows.append([start.elapsed_time(m) / 1e3 for m in rest])

    def result(self) -> Cumulative:
        """All kept repetitions."""
        rows = np.asarray(self._rows)
        return Cumulative(rows[:, :-1], rows[:, -1])


Pass = HostPass | CudaPass
PassFactory = Callable[[LayerGraph, Sequence[Cut], torch.Tensor], Pass]
