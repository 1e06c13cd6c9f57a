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
from pathlib import Path

import torch

from ..errors import PartoptError, ServiceError, first_line
from .program.parts import Part, load_program
from .program.programs import Program
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
        program = load_program(folder, part, None, start.device)
        exchange = Exchange(
            boundary=part.inputs, answer=part.outputs, batch=start.batch, slots=start.slots
        )
        _warm_up(program, exchange, start)
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
    serve(end, program, start.device)


def _until_left(control: Control) -> None:
    """Say that we live when asked; end the process with the orchestrator."""
    while control.read() is not None:
        control.send(event="alive")
    os._exit(0)


def _warm_up(program: Program, exchange: Exchange, start: Start) -> None:
    for batch in {1, start.batch}:
        zeros = [torch.zeros(t.at(batch), dtype=DTYPES[t.dtype]) for t in exchange.boundary]
        for _ in range(2):
            compute(program, zeros, start.device)


def compute(program: Program, tensors: list[torch.Tensor], device: str) -> list[torch.Tensor]:
    """Run the tail on `device` and bring the answer back."""
    if device == "cpu":
        return list(program(*tensors))
    return [t.cpu() for t in program(*(t.to(device, non_blocking=True) for t in tensors))]


def serve(end: End, program: Program, device: str) -> None:
    """Answer until the head worker closes the door."""
    while True:
        try:
            got = end.receive()
            if got is None:
                continue
            header, tensors = got
            begun = time.perf_counter_ns()
            try:
                answer, kind = compute(program, tensors, device), ANSWER
            except (RuntimeError, MemoryError) as error:  # an accelerator out of memory, say
                print(first_line(error), flush=True)
                answer, kind = [], FAILURE
            spent = time.perf_counter_ns() - begun
            send(end, kind, header, answer, spent)
        except ServiceError:
            return


def send(end: End, kind: int, header: Header, answer: list[torch.Tensor], spent: int) -> None:
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
