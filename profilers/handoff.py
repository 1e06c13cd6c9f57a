"""Hand-off of the boundary tensors to another process, measured per payload size.

The runner's own transport carries each payload through shared memory to a second process that
sleeps until then, as a tail worker does, works for a while and answers; the work is taken off. Both
wake-ups, which on cold caches are most of a small payload's hand-off, are in the figure.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
from collections.abc import Iterator

import numpy as np

from ..enclave_runner.launcher import Started, launch_python
from ..enclave_runner.wire import areas
from ..enclave_runner.wire.ends import open_end
from ..enclave_runner.wire.frames import BOUNDARY, Header
from ..enclave_runner.wire.messages import listen
from ..enclave_runner.wire.shm import area_bytes
from ..enclave_runner.wire.start import Start
from ..enclave_runner.wire.transport import End
from ..errors import BackendError, PartoptError, ServiceError
from ._echo import GRANULES, WORK_BYTES, exchange_of

BACKEND = "shared memory between two processes"
_lock = threading.Lock()
_other: Started | None = None


class Handoff:
    """This side of the measurement, opened by `handoff`."""

    def __init__(self, end: End, granule: int, process: Started) -> None:
        self._end, self._granule, self._process = end, granule, process
        self._payload = np.zeros(GRANULES * granule, np.uint8)
        self._before = np.zeros(WORK_BYTES, np.uint8)
        self._count = 0
        self._came: queue.Queue[tuple[float, Header | None]] = queue.Queue()
        # Answers are taken by a thread of their own, as in the head worker.
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        try:
            while True:
                got = self._end.receive()
                if got is not None:
                    self._came.put((time.perf_counter(), got[0]))
        except PartoptError:
            self._came.put((0.0, None))

    def once(self, size: int, timeout: float = 10.0) -> float:
        """Hand `size` bytes over once; seconds until they were taken and answered.

        Raises:
            BackendError: The other process is gone or too slow.
        """
        granules = max(1, -(-size // self._granule))
        payload = self._payload[: granules * self._granule]
        self._count += 1
        self._before.fill(self._count & 0xFF)
        start = time.perf_counter()
        try:
            self._end.send(BOUNDARY, self._count, [payload], batch=granules)
            came, header = self._came.get(timeout=timeout)
        except (ServiceError, queue.Empty):
            header = None
        if header is None:
            raise BackendError("the hand-off's second process did not answer; run again")
        return came - start - header.compute_ns / 1e9


@contextlib.contextmanager
def handoff(largest: int) -> Iterator[Handoff]:
    """Open a hand-off for payloads of up to `largest` bytes; the other process is kept for more."""
    granule = -(-max(largest, 1) // GRANULES)
    with _lock:
        process = _running()
        place = areas.Place(areas.shm_folder(f"profile-{os.getpid()}"), os.urandom(8).hex())
        try:
            path, descriptor = place.file("area", area_bytes(exchange_of(granule)))
            os.close(descriptor)
            with listen() as door:
                port = door.getsockname()[1]
                start = Start(
                    transport="shm",
                    area=str(path),
                    slots=1,
                    batch=GRANULES,
                    threads=1,
                    queue=1,
                    host="",
                    port=port,
                    token="00" * 16,
                )
                process.control.send(start=start.to_event(), granule=granule)
                door.settimeout(60.0)
                sock, _ = door.accept()
            process.control.read()
            end = open_end(sock, exchange_of(granule), start, head=True)
        except OSError as error:
            raise BackendError("the hand-off's second process did not come; run again") from error
        finally:
            place.leave()
        try:
            yield Handoff(end, granule, process)
        finally:
            end.close()


def _running() -> Started:
    global _other
    if _other is None or _other.process.poll() is not None:
        _other = launch_python("profilers._echo")
        atexit.register(_other.stop, 0.5)
    return _other
