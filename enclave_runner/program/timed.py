"""One timed forward pass of a program, as cold as a served one."""

from __future__ import annotations

import time
from typing import Any

import torch

from .programs import Program

_ASLEEP_S = 6e-3
_displaced = torch.ones(16 << 20, dtype=torch.uint8)


def passed(program: Program, example: torch.Tensor, marks: list[int]) -> dict[str, Any]:
    """One forward pass: seconds from its start at each mark (a step's index), and at its end."""
    clock = time.perf_counter
    cool()
    if example.is_cuda:
        torch.cuda.synchronize()
    start = clock()
    _, read = program.run((example,), dict.fromkeys(marks), clock)
    if example.is_cuda:
        torch.cuda.synchronize()
    return {"at": [read.get(m, start) - start for m in marks], "end": clock() - start}


def cool() -> None:
    """Sleep a little, and write as much memory as decoding an image displaces.

    A served head comes out of a wait and never finds the caches as the pass before left them;
    back-to-back passes do, and are up to a tenth faster.
    """
    time.sleep(_ASLEEP_S)
    _displaced.fill_(0)
