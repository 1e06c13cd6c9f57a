"""Make a head cheaper: switches, each kept only where it is faster and its answers agree.

    fold-bn         batch norms folded into the convolutions before them (torch.fx's own pass)
    channels-last   convolutions in NHWC layout; boundary tensors keep their layout

Inference mode is always on. `torch.compile` and AOTInductor are not offered: their product is
machine code, and nothing in a bundle can run code of its own.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from ...errors import UsageError
from .operators import Ref, Step, operator_named
from .programs import Program, with_frees
from .recording import moved, record

SWITCHES = ("fold-bn", "channels-last")
TOLERANCE = 1e-4
# What a switch must gain to be worth an answer that is not bit-identical.
LEAST_GAIN = 1.03


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen head, its switches, how far its answers are off and how much faster it is."""

    program: Program
    switches: tuple[str, ...]
    difference: float
    speedup: float
    tried: dict[str, str]


def parse(text: str) -> tuple[str, ...] | None:
    """``none``, ``auto`` (None) or switches separated by commas.

    Raises:
        UsageError: An unknown switch.
    """
    if text == "auto":
        return None
    names = tuple(n.strip() for n in text.split(",") if n.strip() and n.strip() != "none")
    for name in names:
        if name not in SWITCHES:
            raise UsageError(
                f"`optimise` got {name!r}; use none, auto, or some of {', '.join(SWITCHES)}"
            )
    return names


def folded(head: fx.GraphModule) -> fx.GraphModule:
    """`head` with batch norms folded into convolutions; `head` itself is left as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.fx.experimental.optimization import fuse

        module = fuse(copy.deepcopy(head), inplace=True, no_trace=True)
    assert isinstance(module, fx.GraphModule)
    return module


def channels_last(program: Program) -> Program:
    """`program` with its images and convolutions in NHWC, its outputs in the usual layout."""
    op = "aten.contiguous.default"
    call = operator_named(op)
    first = len(program.inputs) + len(program.constants)
    shift = len(program.inputs)

    def place(index: int) -> int:
        if index < shift:
            return first + index
        return index if index < first else index + shift

    steps = [
        Step(op, call, (Ref(i),), {"memory_format": torch.channels_last}, first + i)
        for i in range(shift)
    ]
    steps += [moved(s, place) for s in program.steps]
    outputs = []
    for output in program.outputs:
        result = first + len(steps)
        steps.append(Step(op, call, (Ref(place(output)),), {}, result))
        outputs.append(result)
    changed = Program(
        program.inputs, program.constants, with_frees(steps, outputs, first), outputs, True
    )
    return changed.load(program.tensors)


def quickest(
    head: fx.GraphModule,
    plain: Program,
    tail: Callable[..., Sequence[torch.Tensor]],
    example: torch.Tensor,
    wanted: tuple[str, ...] | None,
    dynamic: bool,
    *,
    repetitions: int = 9,
) -> Choice:
    """Time the candidates interleaved, one thread, and take the fastest whose answers agree.

    Args:
        head: The traced head.
        plain: Its program without switches.
        tail: Maps boundary tensors to the answer.
        example: An input of the model.
        wanted: The switches to use, or None to choose by measurement.
        dynamic: As in `record`.
        repetitions: Timed runs a candidate.

    Raises:
        UsageError: Wanted switches whose answers are off by more than the tolerance.
    """
    sets = [wanted] if wanted is not None else [(), *((s,) for s in SWITCHES), SWITCHES]
    programs: dict[tuple[str, ...], Program] = {(): plain}
    for switches in sets:
        if switches not in programs:
            program = record(folded(head), [example], dynamic) if "fold-bn" in switches else plain
            programs[switches] = channels_last(program) if "channels-last" in switches else program
    truth = tail(*plain(example))
    off = {s: _difference(truth, tail(*p(example))) for s, p in programs.items()}
    times = _interleaved(programs, example, repetitions)
    tried = {
        "+".join(s) or "none": f"{times[()] / times[s]:.2f}x, difference {off[s]:.1e}"
        for s in programs
    }
    if wanted is not None:
        if off[wanted] > TOLERANCE:
            raise UsageError(
                f"`optimise` got {'+'.join(wanted)}, whose answers are off by {off[wanted]:.1e}, "
                f"more than {TOLERANCE:.0e}; use none or auto"
            )
        best = wanted
    else:
        good = [s for s in programs if s == () or off[s] <= TOLERANCE]
        best = min(good, key=lambda s: times[s])
        if times[()] / times[best] < LEAST_GAIN:
            best = ()
    return Choice(
        program=programs[best],
        switches=best,
        difference=off[best],
        speedup=times[()] / times[best],
        tried=tried,
    )


def _difference(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if not torch.equal(x, y):
            scale = float(x.abs().max()) or 1.0
            worst = max(worst, float((x - y).abs().max()) / scale)
    return worst


def _interleaved(
    programs: dict[tuple[str, ...], Program], example: torch.Tensor, repetitions: int
) -> dict[tuple[str, ...], float]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    samples: dict[tuple[str, ...], list[float]] = {s: [] for s in programs}
    try:
        for i in range(repetitions + 2):
            for switches, program in programs.items():
                begun = time.perf_counter()
                program(example)
                if i >= 2:
                    samples[switches].append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(before)
    return {s: sorted(v)[len(v) // 2] for s, v in samples.items()}
