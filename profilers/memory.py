"""Make this process keep its memory as the runner's workers do: passes then cost the same here."""

from __future__ import annotations

import contextlib
import ctypes

# From glibc's <malloc.h>; see ENVIRONMENT in enclave_runner.manifest.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_memory() -> None:
    """Set glibc's thresholds; elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
