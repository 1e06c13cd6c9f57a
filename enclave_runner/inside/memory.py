"""Freed memory: what goes back to the system, and what is kept for the next image.

Activations are kept: they would be faulted in again at every image. What pictures, messages and
many clients took is not needed again, and cannot be taken back from between other things, neither
by Gramine (where trimming gives nothing back) nor always by the C library; so what is large is
mapped by itself and goes as soon as it is freed, except while the network runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

_C = ctypes.PyDLL(None)
# glibc's; other libraries return memory themselves.
_MALLOPT, _TRIM = getattr(_C, "mallopt", None), getattr(_C, "malloc_trim", None)
_M_MMAP_THRESHOLD = -3
# Bytes from which on memory is mapped by itself: usually, and while the network runs.
_USUALLY, _RUNNING = 256 << 10, 32 << 20


def _map_from(size: int) -> None:
    if _MALLOPT is not None:
        _MALLOPT(_M_MMAP_THRESHOLD, size)


def let_go() -> None:
    """From now on, memory of what is large goes back to the system as soon as it is freed."""
    _map_from(_USUALLY)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Within, memory is kept for the next time."""
    _map_from(_RUNNING)
    try:
        yield
    finally:
        let_go()


def trim() -> None:
    """Give back what is free of the rest. Gramine would fill it with zeros and keep it."""
    if _TRIM is not None and os.environ.get("PARTOPT_BACKEND") != "gramine":
        _TRIM(ctypes.c_size_t(0))
