"""What runs outside: the list of layers, and their sums on whatever residues arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from ..errors import BackendError, FrameError
from .exact import choose, modular
from .layers import Layer


class Outside(Protocol):
    """Computes a layer on masked values. Whatever it returns is believed only after the check."""

    def __call__(self, name: str, masked: torch.Tensor) -> torch.Tensor:
        """The layer `name` on `masked` (batch, \\*shape) int32, modulo 2^32, as int32."""
        ...


class Worker:
    """The honest outside: public weights on a device, no secrets.

    Args:
        layers: The layers, by their names.
        device: Where the sums are made.

    Raises:
        BackendError: The device is not there, or multiplies integers exactly in no known way.
    """

    def __init__(self, layers: Sequence[Layer], device: str = "cpu") -> None:
        try:
            self.device = torch.device(device)
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise BackendError(f"`device` {device!r} is not available here; use 'cpu'") from error
        self.arithmetic = choose(self.device.type)
        self._layers = {layer.name: layer for layer in layers}

    def __call__(self, name: str, masked: torch.Tensor) -> torch.Tensor:
        """The layer `name` on `masked`, as int32 on the CPU.

        Raises:
            FrameError: No such layer, or values of another shape or kind than it takes.
        """
        layer = self._layers.get(name)
        if layer is None or masked.dtype != torch.int32 or masked.shape[1:] != layer.shape:
            raise FrameError(
                "malformed",
                f"`masked` got {masked.dtype} {tuple(masked.shape)} for layer {name!r}; "
                "send a layer of this worker's and int32 of its shape",
            )
        return modular(layer, masked.to(self.device), self.arithmetic).cpu()
