"""The tail worker: an ordinary process on the accelerator that answers boundary tensors.

    python -m partopt.enclave_runner.tail BUNDLE/tail

Started by the orchestrator, which it asks for its settings.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import BundleError, PartoptError, ServiceError, first_line
from .program.engine import Runs
from .program.loading import load_program
from .program.parts import Part
from .program.programs import Program
from .program.tensors import from_wire, to_wire
from .wire.ends import open_end
from .wire.frames import ANSWER, FAILURE, Header
from .wire.layouts import DTYPES
from .wire.messages import Control
from .wire.start import Start, start_from
from .wire.transport import End, Exchange


def main(folder: Path) -> None:
    """Serve until the head or the orchestrator goes."""
    control = Control.dial()
    try:
        start = start_from(control.read())
        torch.set_num_threads(start.threads)
        part = Part.read(folder)
        run = loaded(folder, part, start)
        exchange = Exchange(
            boundary=part.inputs, answer=part.outputs, batch=start.batch, slots=start.slots
        )
        _warm_up(run, exchange, start)
        door = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        door.connect(("127.0.0.1", start.port))
        door.sendall(bytes.fromhex(start.token))
        if door.recv(1) != b"G":
            raise ServiceError("head-lost", "the head worker did not take the tail")
        end = open_end(door, exchange, start, head=False)
    except (PartoptError, OSError, RuntimeError) as error:
        control.send(event="failed", error=f"{type(error).__name__}: {str(error)[:300]}")
        sys.exit(1)
    threading.Thread(target=_until_left, args=(control,), daemon=True).start()
    control.send(event="ready", device=start.device)
    serve(end, run)


def loaded(folder: Path, part: Part, start: Start) -> Runs:
    """What computes the tail.

    Raises:
        BundleError: As the engine's own loading; or it cannot run on the device.
    """
    if part.engine == "torch":
        program = load_program(folder, part, None, start.device)

        def run(*arrays: np.ndarray) -> Sequence[np.ndarray]:
            return to_wire(compute(program, from_wire(arrays, part.inputs), start.device))

        return run
    if start.device != "cpu":
        raise BundleError(
            "the tail is for ONNX Runtime on the processor; use --accelerator cpu, or export with "
            "--tail-engine torch"
        )
    from .program.ort_engine import load

    return load(folder, part, None, start.threads)


def _until_left(control: Control) -> None:
    """Say that we live when asked; end the process with the orchestrator."""
    while control.read() is not None:
        control.send(event="alive")
    os._exit(0)


def _warm_up(run: Runs, exchange: Exchange, start: Start) -> None:
    for batch in {1, start.batch}:
        zeros = [np.zeros(t.at(batch), DTYPES[t.dtype]) for t in exchange.boundary]
        for _ in range(2):
            run(*zeros)


def compute(program: Program, tensors: list[torch.Tensor], device: str) -> list[torch.Tensor]:
    """Run the tail on `device` and bring the answer back."""
    if device == "cpu":
        return list(program(*tensors))
    return [t.cpu() for t in program(*(t.to(device, non_blocking=True) for t in tensors))]


def serve(end: End, run: Runs) -> None:
    """Answer until the head worker closes the door."""
    while True:
        try:
            got = end.receive()
            if got is None:
                continue
            header, tensors = got
            begun = time.perf_counter_ns()
            try:
                answer, kind = run(*tensors), ANSWER
            except (RuntimeError, MemoryError) as error:  # an accelerator out of memory, say
                print(first_line(error), flush=True)
                answer, kind = [], FAILURE
            spent = time.perf_counter_ns() - begun
            send(end, kind, header, answer, spent)
        except ServiceError:
            return


def send(end: End, kind: int, header: Header, answer: Sequence[np.ndarray], spent: int) -> None:
    """Answer a frame; that the answer found no room is an answer too."""
    try:
        end.send(kind, header.request, answer, batch=header.batch, compute_ns=spent)
    except ServiceError as error:
        if error.code != "no-room":
            raise
        print(error, flush=True)  # into the tail's own log
        end.send(FAILURE, header.request, [], batch=header.batch, compute_ns=spent)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
