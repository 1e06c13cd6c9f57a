"""PyTorch as the engine of a part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from .engine import Engine, Runs
from .loading import load_program
from .parts import Part
from .tensors import to_wire


def load(folder: Path, part: Part, key: bytes | None, threads: int) -> Runs:
    """See `Engine`.

    Raises:
        BundleError: As `load_program`.
    """
    program = load_program(folder, part, key)

    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        return to_wire(program(torch.from_numpy(images)))

    return run


ENGINE = Engine("torch", torch.set_num_threads, load)
