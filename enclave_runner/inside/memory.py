"""Give freed memory back to the system.

Workers keep what they freed (`MALLOC_TRIM_THRESHOLD_`), so that activations are not faulted in
again at every image; what a huge picture or many clients took is not needed again.
"""

from __future__ import annotations

import ctypes

_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others return memory themselves


def give_back() -> None:
    """Return what is free."""
    if _TRIM is not None:
        _TRIM(ctypes.c_size_t(0))
