"""What makes a timed pass as cold as a served one."""

from __future__ import annotations

import time

import numpy as np

_ASLEEP_S = 6e-3
_displaced = np.ones(16 << 20, np.uint8)


def cool() -> None:
    """Sleep a little, and write as much memory as decoding an image displaces.

    A served head comes out of a wait and never finds the caches as the pass before left them;
    back-to-back passes do, and are up to a tenth faster.
    """
    time.sleep(_ASLEEP_S)
    _displaced.fill(0)
