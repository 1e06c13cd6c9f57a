"""What runs a part of a network: arrays in, arrays out, whatever computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .parts import Part

# Maps a batch of each input to the part's outputs, in memory that is good until the next call.
Runs = Callable[..., Sequence[np.ndarray]]


@dataclass(frozen=True)
class Engine:
    """How parts are loaded and run.

    Attributes:
        name: As a spec names it.
        prepare: Told the number of compute threads, once, by the main thread.
        load: A part in its folder, its key or none, and the number of threads; gives what runs it.
    """

    name: str
    prepare: Callable[[int], None]
    load: Callable[[Path, Part, bytes | None, int], Runs]
