"""torch's tensors as what crosses, and back; without a copy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ..wire.layouts import DTYPES as _CROSSING
from ..wire.layouts import Layout

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _CROSSING}


def to_wire(tensors: Iterable[torch.Tensor]) -> list[np.ndarray]:
    """Tensors on the processor as arrays over the same memory; bfloat16 as its bits."""
    return [
        np.asarray((t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy())
        for t in tensors
    ]


def from_wire(arrays: Iterable[np.ndarray], layouts: Sequence[Layout]) -> list[torch.Tensor]:
    """Arrays as tensors over the same memory."""
    return [
        torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
        if layout.dtype == "bfloat16"
        else torch.from_numpy(a)
        for a, layout in zip(arrays, layouts, strict=True)
    ]
