"""An ONNX graph that grows with the steps of a program.

Shapes come from the program itself, run on tensors without memory at three batch sizes: a dimension
is a number, or a multiple of the batch. What follows from constants alone is computed here, with
torch, and stored; the rest becomes nodes at opset `OPSET`, weights inside the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ...errors import ExportError

OPSET, IR_VERSION = 20, 10
# At which shapes are looked at: two tell how a dimension grows, the third holds it.
BATCHES = (2, 3, 1)
_TYPES = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int8: 3,
    torch.int16: 5,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float64: 11,
}


class NotWritten(ExportError):
    """An operator, or a use of one, that is not written as ONNX."""


class Grown(int):
    """A size, at the first of the batch sizes, that grows with the batch."""


@dataclass(eq=False)
class Value:
    """A tensor of the program.

    Attributes:
        ghosts: It without memory, at each of the batch sizes.
        constant: What it always is, or None.
        name: Its name in the graph, once it has one.
    """

    ghosts: tuple[torch.Tensor, ...]
    constant: torch.Tensor | None = None
    name: str = ""

    @property
    def dtype(self) -> torch.dtype:
        """Of its elements."""
        return self.ghosts[0].dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self.ghosts[0].ndim

    @property
    def dims(self) -> list[tuple[int, int]]:
        """Each dimension as (a, b): a times the batch and b more.

        Raises:
            NotWritten: One that is neither a number nor a multiple of the batch.
        """
        found = []
        for sizes in zip(*(g.shape for g in self.ghosts), strict=True):
            a = sizes[1] - sizes[0] if len(sizes) > 1 else 0
            b = sizes[0] - BATCHES[0] * a
            if any(s != a * n + b for s, n in zip(sizes, BATCHES, strict=False)) or (a and b):
                raise NotWritten("a dimension is no multiple of the batch")
            found.append((a, b))
        return found

    def size(self, dim: int) -> int:
        """A dimension that is a number.

        Raises:
            NotWritten: It grows with the batch.
        """
        a, b = self.dims[dim]
        if a:
            raise NotWritten("a dimension that grows with the batch")
        return b


@dataclass
class Writer:
    """Nodes and initialisers, as ``onnx`` protobufs.

    Attributes:
        image: Name of the input that the batch is read from.
        stem: What names of values begin with: those of one step after the other.
    """

    image: str
    stem: str = ""
    nodes: list[Any] = field(default_factory=list)
    initialisers: list[Any] = field(default_factory=list)
    _known: dict[Any, str] = field(default_factory=dict)
    _kept: list[torch.Tensor] = field(default_factory=list)
    _count: int = 0

    # ---- constants

    def stored(self, tensor: torch.Tensor) -> str:
        """An initialiser, once for each tensor."""
        key = ("tensor", id(tensor))
        if key not in self._known:
            self._kept.append(tensor)  # so that its id stays its own
            self._known[key] = self._initialiser(tensor)
        return self._known[key]

    def number(self, value: float | int | bool, dtype: torch.dtype = torch.float32) -> str:
        """A number as a tensor without dimensions."""
        key = ("number", value, dtype, math.copysign(1, value))
        if key not in self._known:
            self._known[key] = self._initialiser(torch.tensor(value, dtype=dtype))
        return self._known[key]

    def numbers(self, values: Sequence[int]) -> str:
        """Whole numbers as a tensor of one dimension."""
        key = ("numbers", tuple(values))
        if key not in self._known:
            self._known[key] = self._initialiser(torch.tensor(list(values), dtype=torch.int64))
        return self._known[key]

    def _initialiser(self, tensor: torch.Tensor) -> str:
        from onnx import numpy_helper

        onnx_type(tensor.dtype)
        name = f"c{len(self.initialisers)}"
        array = np.ascontiguousarray(tensor.detach().cpu().contiguous().numpy())
        self.initialisers.append(numpy_helper.from_array(array.reshape(tensor.shape), name))
        return name

    # ---- nodes

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """A node with one output; its name."""
        return self.node_of_several(op, *inputs, outputs=outputs, **attributes)[0]

    def node_of_several(self, op: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """A node; the names of its outputs."""
        from onnx import helper

        names = []
        for _ in range(outputs):
            names.append(f"{self.stem}_{self._count}")
            self._count += 1
        kept = {k: v for k, v in attributes.items() if v is not None}
        self.nodes.append(helper.make_node(op, list(inputs), names, name=names[0], **kept))
        return names

    def begin(self, stem: str) -> None:
        """Name what follows after `stem`."""
        self.stem, self._count = stem, 0

    # ---- values

    def name(self, value: Value, dtype: torch.dtype | None = None) -> str:
        """The name of `value`, cast to `dtype` where it is of another."""
        if value.constant is not None:
            tensor = value.constant
            if dtype is None or tensor.dtype == dtype:
                return self.stored(tensor)
            key = ("cast", id(tensor), dtype)
            if key not in self._known:
                self._known[key] = self.stored(tensor.to(dtype))
                self._kept.append(tensor)
            return self._known[key]
        if dtype is None or value.dtype == dtype:
            return value.name
        return self.cast(value.name, dtype)

    def operand(self, value: Any, dtype: torch.dtype) -> str:
        """The name of a tensor or of a number, as `dtype`."""
        return self.name(value, dtype) if isinstance(value, Value) else self.number(value, dtype)

    def cast(self, name: str, dtype: torch.dtype) -> str:
        """`name` as another dtype."""
        return self.node("Cast", name, to=onnx_type(dtype))

    def shape(self, dims: Sequence[tuple[int, int]], free: bool = False) -> str:
        """A shape as a tensor of whole numbers; `free`: one dimension may be left to be found."""
        growing = [i for i, (a, _) in enumerate(dims) if a]
        if not growing:
            return self.numbers([b for _, b in dims])
        if free and len(growing) == 1:
            return self.numbers([-1 if a else b for a, b in dims])
        batch = self.node("Shape", self.image, start=0, end=1)
        parts = []
        for a, b in dims:
            if not a:
                parts.append(self.numbers([b]))
            else:
                parts.append(batch if a == 1 else self.node("Mul", batch, self.numbers([a])))
        return parts[0] if len(parts) == 1 else self.node("Concat", *parts, axis=0)

    def reshaped(self, name: str, dims: Sequence[tuple[int, int]]) -> str:
        """`name` with other dimensions."""
        return self.node("Reshape", name, self.shape(dims, free=True))


def onnx_type(dtype: torch.dtype) -> int:
    """ONNX's number of a dtype.

    Raises:
        NotWritten: Another than whole numbers, booleans and floats of 32 and 64 bits.
    """
    if dtype not in _TYPES:
        raise NotWritten(f"a tensor of {str(dtype).removeprefix('torch.')}")
    return _TYPES[dtype]
