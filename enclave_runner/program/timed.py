"""One timed forward pass of a program, as cold as a served one."""

from __future__ import annotations

import time
from typing import Any

import torch

from .cooling import cool
from .programs import Program


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
