"""The other process of the hand-off measurement: a tail worker without a network.

    python -m partopt.profilers._echo

Between taking a payload and answering it writes as much memory as a tail would, so that the head's
side is asleep and caches are cold, as they are when the runner hands over; that time is reported in
the answer, as the tail's compute time is.
"""

from __future__ import annotations

import contextlib
import socket
import time

import numpy as np

from ..enclave_runner.wire.ends import open_end
from ..enclave_runner.wire.frames import ANSWER
from ..enclave_runner.wire.layouts import Layout
from ..enclave_runner.wire.messages import Control
from ..enclave_runner.wire.start import start_from
from ..enclave_runner.wire.transport import End, Exchange
from ..errors import ServiceError

GRANULES = 1000
WORK_BYTES = 32 << 20


def exchange_of(granule: int) -> Exchange:
    """Payloads of 1 to GRANULES times `granule` bytes; answers of at most 4 KB."""
    payload = Layout("payload", (granule,), "uint8")
    answer = Layout("answer", (1,), "float32")
    return Exchange(boundary=(payload,), answer=(answer,), batch=GRANULES, slots=1)


def main() -> None:
    """Take jobs until the parent hangs up."""
    control = Control.dial()
    while (event := control.read()) is not None:
        start = start_from(event["start"])
        door = socket.create_connection(("127.0.0.1", start.port))
        end = open_end(door, exchange_of(event["granule"]), start, head=False)
        control.send(event="ready")
        with contextlib.suppress(ServiceError):
            _answer(end)


def _answer(end: End) -> None:
    """Until the parent closes the door."""
    work, source = bytearray(WORK_BYTES), bytes(WORK_BYTES)
    while True:
        got = end.receive()
        if got is not None:
            header, _ = got
            begun = time.perf_counter_ns()
            work[:] = source
            worked = time.perf_counter_ns() - begun
            answer = [np.zeros(header.batch, np.float32)]
            end.send(ANSWER, header.request, answer, batch=header.batch, compute_ns=worked)


if __name__ == "__main__":
    main()
