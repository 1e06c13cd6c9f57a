"""A linear layer with 8-bit weights, as both sides know it, and the proof that no sum wraps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from ..errors import BlindingError
from .field import PRIME

MAX_WEIGHT = 127
MAX_LIMIT = 1 << 12


@dataclass(frozen=True)
class Window:
    """How a convolution walks over its input.

    Attributes:
        stride, dilation: Down and across.
        padding: Zeros added left, right, above and below.
        groups: As in `torch.nn.Conv2d`.
    """

    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Layer:
    """One convolution or linear layer without its bias, which is added inside.

    Attributes:
        name: What both sides call it.
        weight: int8 in [-127, 127], (outputs, inputs / groups, height, width) or (outputs, inputs).
        shape: One image's input without the batch: (channels, height, width) or (..., inputs).
        limit: The largest magnitude that an input value can have.
        window: How a convolution walks, or None for a linear layer.

    Raises:
        BlindingError: Weights, shape and window do not fit together.
    """

    name: str
    weight: torch.Tensor
    shape: tuple[int, ...]
    limit: int
    window: Window | None = None

    def __post_init__(self) -> None:
        w, groups = self.weight, self.window.groups if self.window else 1
        ok = (
            w.dtype == torch.int8
            and w.ndim == (4 if self.window else 2)
            and w.numel() > 0
            and int(w.min()) >= -MAX_WEIGHT
            and self.limit >= 1
            and (not self.window or len(self.shape) == 3)
            and len(self.shape) >= 1
            and w.shape[1] * groups == self.shape[0 if self.window else -1]
            and w.shape[0] % groups == 0
            and all(n >= 1 for n in self.output_shape)
        )
        if not ok:
            raise BlindingError(
                f"`layer` {self.name!r} got weights {tuple(w.shape)} {w.dtype} for inputs "
                f"{self.shape} of at most {self.limit}; use int8 weights from -127 that fit them"
            )

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        """One image's output without the batch."""
        if self.window is None:
            return (*self.shape[:-1], self.weight.shape[0])
        w, (left, right, above, below) = self.window, self.window.padding
        padded = (self.shape[1] + above + below, self.shape[2] + left + right)
        sides = (
            (padded[i] - (self.weight.shape[2 + i] - 1) * w.dilation[i] - 1) // w.stride[i] + 1
            for i in (0, 1)
        )
        return (self.weight.shape[0], *sides)

    @cached_property
    def bound(self) -> int:
        """The largest magnitude of any output: the limit times the largest row sum of weights."""
        rows = self.weight.to(torch.int64).abs().flatten(1).sum(1)
        return int(rows.max()) * self.limit

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        values = 1
        for n in self.output_shape:
            values *= n
        return values * self.weight[0].numel()

    @property
    def unprovable(self) -> str | None:
        """Why this layer must stay in the enclave, or None where no sum can wrap.

        An output must be below a quarter of the ring (a half of the prime): then it is read back
        from its residue, *and* two different values that it may have differ by less than the prime.
        Else the host could add the prime itself to an answer, which no check modulo it can see.
        """
        if self.limit > MAX_LIMIT:
            return f"inputs reach {self.limit} in magnitude, and the check takes up to {MAX_LIMIT}"
        if 2 * self.bound < PRIME:
            return None
        return (
            f"outputs can reach {self.bound} in magnitude, and up to {(PRIME - 1) // 2} can be "
            "told from a change by the prime of the check"
        )

    def proved(self) -> Layer:
        """This layer.

        Raises:
            BlindingError: A sum could wrap.
        """
        if self.unprovable:
            raise BlindingError(
                f"`layer` {self.name!r} cannot be blinded: {self.unprovable}; keep it in the "
                "enclave or use fewer bits for its inputs"
            )
        return self
