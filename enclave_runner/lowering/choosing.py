"""Which engine runs a half of a network: measured at export, beside the program in torch."""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ...errors import ExportError, UsageError, first_line
from ..program.onnx_held import held
from ..program.ort_runtime import How, Session
from ..program.programs import Program
from ..program.tensors import to_wire
from ..program.trial import TOLERANCE, noise, written
from .model import lowered
from .optimised import LEVELS, optimised

ENGINES = ("torch", "ort", "auto")
# What an engine must gain to be taken by `auto`.
LEAST_GAIN = 1.03
_ROUNDS, _WARM_UP = 15, 3


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The engine of a half.

    Attributes:
        engine: ``torch`` or ``ort``.
        level: How ONNX Runtime optimised its model, or "".
        model: Its bytes, or none.
        said: What goes into ``program.json`` beside it.
        speedup: Against the program in torch, by medians of one thread's computing time.
        differences: For each output the largest difference from the traced program's over all
            images, as a share of its standard deviation.
        images: How many images that was.
        tried: What was measured, or why an engine was not taken.
    """

    engine: str = "torch"
    level: str = ""
    model: bytes = b""
    said: dict[str, Any] = field(default_factory=dict)
    speedup: float = 1.0
    differences: tuple[float, ...] = ()
    images: int = 0
    tried: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Half:
    """What is to be run.

    Attributes:
        plain: The program as it was traced; what answers are held against, and what is written.
        quick: The same with the switches that were chosen for torch; what times are held against.
        dynamic: As in `record`.
        inputs: For each image the half's inputs at batch 1.
        answers: From the half's outputs to the model's answer, or None where they are that.
    """

    plain: Program
    quick: Program
    dynamic: bool
    inputs: Sequence[Sequence[torch.Tensor]]
    answers: Callable[..., Sequence[torch.Tensor]] | None

    def on_noise(self) -> list[np.ndarray]:
        """What the traced program makes of a trial's noise."""
        return to_wire(self.plain(*(torch.from_numpy(noise(t.shape)) for t in self.inputs[0])))


def hold_engine(option: str, name: str) -> str:
    """`name`, if it is one.

    Raises:
        UsageError: It is none.
    """
    if name not in ENGINES:
        raise UsageError(f"`{option}` got {name!r}; use {', '.join(ENGINES)}")
    return name


def choose(half: Half, wanted: str) -> Chosen:
    """The engine for `half`: `wanted`, or with ``auto`` the fastest that passes.

    Raises:
        ExportError: ``ort`` was asked for and cannot run the half, or is too far off it.
    """
    if wanted == "torch":
        return Chosen()
    try:
        models = _models(half)
        good, tried = _within(half, models)
    except ExportError as error:
        if wanted == "ort":
            raise
        return Chosen(tried={"ort": str(error)})
    times = _timed(half, {level: good[level][0] for level in good})
    for level in good:
        tried[f"ort, {level}"] = (
            f"{times[''] / times[level]:.2f}x, difference {max(good[level][1]):.1e}"
        )
    best = min(good, key=lambda level: times[level])
    gain = times[""] / times[best]
    if wanted == "auto" and gain < LEAST_GAIN:
        return Chosen(tried=tried)
    return Chosen(
        engine="ort",
        level=best,
        model=models[best],
        said=written(best, half.on_noise()),
        speedup=gain,
        differences=good[best][1],
        images=len(half.inputs),
        tried=tried,
    )


def _models(half: Half) -> dict[str, bytes]:
    if any(t.dtype != torch.float32 for t in half.inputs[0]):
        raise ExportError("ONNX Runtime is given floats alone here; use --engine torch")
    plain = lowered(half.plain, half.inputs[0], half.dynamic)
    return {level: optimised(plain, level) for level in LEVELS}


Runs = Callable[[Sequence[torch.Tensor]], Sequence[np.ndarray]]


def session_of(model: bytes) -> Runs:
    """What runs a model on one thread, as a worker does."""
    names = [name for name, _ in held(model).inputs]
    running = Session(model, How())

    def run(given: Sequence[torch.Tensor]) -> Sequence[np.ndarray]:
        return running.run(dict(zip(names, to_wire(given), strict=True)))

    return run


def _within(
    half: Half, models: Mapping[str, bytes]
) -> tuple[dict[str, tuple[Runs, tuple[float, ...]]], dict[str, str]]:
    """Levels whose tensors and answers agree with the traced program's, and why others do not."""
    good, tried = {}, {}
    for level, model in models.items():
        try:
            run = session_of(model)
        except Exception as error:  # what ONNX Runtime raises has no common class
            tried[f"ort, {level}"] = first_line(error)
            continue
        off, wrong = _compared(half, run)
        names = [i for i, d in enumerate(off) if not d <= TOLERANCE]
        if names:
            tried[f"ort, {level}"] = (
                f"tensor {names[0]} differs by {off[names[0]]:.1e} of its standard deviation, more "
                f"than {TOLERANCE:.0e}: the attacks were made on the traced head's features, not "
                "on these"
            )
        elif wrong:
            tried[f"ort, {level}"] = wrong
        else:
            good[level] = run, off
    if not good:
        raise ExportError(f"ONNX Runtime: {'; '.join(tried.values())}; use --engine torch")
    return good, tried


def _compared(half: Half, run: Runs) -> tuple[tuple[float, ...], str]:
    """Largest difference of each output, as a share of its deviation; why answers do not do."""
    worst: list[float] = []
    squares: list[list[torch.Tensor]] = []
    wrong = ""
    for given in half.inputs:
        truth = half.plain(*given)
        found = [torch.from_numpy(np.array(a)) for a in run(given)]
        if [(t.shape, t.dtype) for t in truth] != [(f.shape, f.dtype) for f in found]:
            raise ExportError("ONNX Runtime gives tensors of other shapes; use --engine torch")
        off = [_largest(t, f) for t, f in zip(truth, found, strict=True)]
        worst = [max(a, b) for a, b in zip(worst or off, off, strict=True)]
        squares.append([t.double() for t in truth])
        wrong = wrong or _answers_off(half, truth, found)
    deviations = [float(torch.stack(ts).std()) for ts in zip(*squares, strict=True)]
    return tuple(_share(o, d) for o, d in zip(worst, deviations, strict=True)), wrong


def _share(off: float, deviation: float) -> float:
    if off == 0:
        return 0.0
    return off / deviation if deviation else float("inf")


def _largest(truth: torch.Tensor, found: torch.Tensor) -> float:
    if torch.equal(truth, found):
        return 0.0
    off = float((truth.double() - found.double()).abs().max())
    return off if off == off else float("inf")


def _answers_off(half: Half, truth: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> str:
    from ..program.optimise import TOLERANCE as ANSWERS

    if half.answers is not None:
        truth, found = half.answers(*truth), half.answers(*found)
    for a, b in zip(truth, found, strict=True):
        scale = float(a.abs().max()) or 1.0
        off = _largest(a, b) / scale
        if off > ANSWERS:
            return f"its answers are off by {off:.1e}, more than {ANSWERS:.0e}"
    return ""


def _timed(half: Half, sessions: Mapping[str, Runs]) -> dict[str, float]:
    """Median seconds of computing of each, interleaved, one thread; "" is torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    given = half.inputs[0]
    runs: dict[str, Callable[[], Any]] = {"": lambda: half.quick(*given)}
    for level, run in sessions.items():
        runs[level] = functools.partial(run, given)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order, shuffled = list(runs), random.Random(0)
    try:
        for turn in range(_WARM_UP + _ROUNDS):
            shuffled.shuffle(order)
            for name in order:
                begun = time.thread_time()
                runs[name]()
                if turn >= _WARM_UP:
                    samples[name].append(time.thread_time() - begun)
    finally:
        torch.set_num_threads(before)
    return {name: statistics.median(values) for name, values in samples.items()}
