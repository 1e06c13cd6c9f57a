"""How tensors lie in memory when they cross: names, shapes and dtypes, agreed on beforehand.

They cross as numpy's arrays, so that neither side needs the other's engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_NAMES = "float32 float64 float16 int8 int16 int32 int64 uint8 bool"
DTYPES = {name: np.dtype(name) for name in _NAMES.split()}
# numpy has no such floats: their bits cross.
DTYPES["bfloat16"] = np.dtype("uint16")
_ALIGN = 64


@dataclass(frozen=True)
class Layout:
    """Name, shape at batch 1 (first dimension grows with the batch) and dtype of a tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def at(self, batch: int) -> tuple[int, ...]:
        """Exchange for `batch` images."""
        return (self.shape[0] * batch, *self.shape[1:]) if self.shape else ()

    def nbytes(self, batch: int) -> int:
        """Dense bytes for `batch` images."""
        return math.prod(self.at(batch)) * DTYPES[self.dtype].itemsize

    @classmethod
    def of(cls, name: str, tensor: Any) -> Layout:
        """The layout of a tensor, of torch or numpy, at batch 1."""
        return cls(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def room(layouts: Sequence[Layout], batch: int) -> int:
    """Bytes that tensors of these layouts take one behind the other, each aligned to 64."""
    return sum(-(-layout.nbytes(batch) // _ALIGN) * _ALIGN for layout in layouts)


def views(memory: Any, offset: int, layouts: Sequence[Layout], batch: int) -> list[np.ndarray]:
    """Arrays over `memory` (a writable buffer) at `offset`, without copies."""
    found = []
    for layout in layouts:
        count = math.prod(layout.at(batch))
        flat = np.frombuffer(memory, dtype=DTYPES[layout.dtype], count=count, offset=offset)
        found.append(flat.reshape(layout.at(batch)))
        offset += -(-layout.nbytes(batch) // _ALIGN) * _ALIGN
    return found
