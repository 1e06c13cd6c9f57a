"""Hand-off of the boundary tensors to another process, measured per payload size.

The payload is copied into shared memory; a second process, which sleeps until then as the tail
worker does, copies it out and says so. The figure holds both copies and both wake-ups.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import BackendError

BACKEND = "shared memory between two processes"
_HEADER = 64
_SPIN_S = 100e-6
# The other process is asleep by then, as a tail worker is while the head computes.
IDLE_S = 1e-3


class Handoff:
    """A second process and the memory shared with it."""

    def __init__(self, memory: mmap.mmap, process: subprocess.Popen[bytes], largest: int) -> None:
        self._memory = memory
        self._view = np.frombuffer(memory, np.uint8)
        self._process = process
        self._largest = largest
        self._counter = 0

    def once(self, payload: np.ndarray, timeout: float = 10.0) -> float:
        """Hand `payload` (uint8) over once; seconds until the other process holds a copy.

        Raises:
            BackendError: The other process is gone or too slow.
        """
        size = len(payload)
        assert size <= self._largest
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._counter += 1
        time.sleep(IDLE_S)
        start = time.perf_counter()
        self._view[_HEADER : _HEADER + size] = payload
        struct.pack_into("<q", self._memory, 8, size)
        struct.pack_into("<q", self._memory, 0, self._counter)
        with contextlib.suppress(BrokenPipeError):
            os.write(self._process.stdin.fileno(), b"!")
        rings = self._process.stdout.fileno()
        while struct.unpack_from("<q", self._memory, 16)[0] != self._counter:
            spent = time.perf_counter() - start
            if spent > _SPIN_S:
                came = select.select([rings], [], [], max(0.0, timeout - spent))[0]
                if not came or not os.read(rings, 4096):
                    raise BackendError("the hand-off's second process did not answer; run again")
        return time.perf_counter() - start

    def close(self) -> None:
        """Tell the other process to go."""
        struct.pack_into("<q", self._memory, 0, -1)
        del self._view
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def handoff(largest: int) -> Iterator[Handoff]:
    """Start the second process with room for payloads of `largest` bytes."""
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    size = largest + _HEADER
    with tempfile.TemporaryDirectory(prefix="partopt-", dir=shared) as folder:
        path = Path(folder) / "handoff"
        path.touch(mode=0o600)
        with open(path, "r+b") as file:
            file.truncate(size)
            memory = mmap.mmap(file.fileno(), size)
        script = Path(__file__).with_name("_echo.py")
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), str(path), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        channel = Handoff(memory, process, largest)
        try:
            channel.once(np.zeros(1, np.uint8))
            yield channel
        finally:
            channel.close()
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
