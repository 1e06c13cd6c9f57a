"""One-time masks and what takes them off again, made ahead, in this process's memory alone.

A mask that blinds two values gives their difference away, so the rule is that none is ever used
twice, whatever happens in between:

- a mask is drawn from the operating system's generator when it is made, and never from a seed that
  is kept: a process that is killed and started again cannot draw the same;
- a bank is never written, copied or pickled: what lies on a disk that is set back holds no mask;
- taking removes under a lock before anything is handed out, and what a failed request took is lost;
- a child process that was forked with a bank in its memory starts an empty one of its own, and
  masks that were taken before the fork work in the parent alone.

What is set back together with the memory of a whole virtual machine is beyond a process; inside SGX
there is no such thing, as an enclave's memory does not outlive it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from ..errors import BlindingError, ServiceError, UsageError
from .exact import modular
from .layers import Layer
from .ring import add, subtract, uniform

POLICIES = ("make", "busy")


class _Kept:
    """What must not leave this process's memory in any form."""

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise BlindingError("masks cannot be copied or stored: a copy would be used a second time")


class Pad(_Kept):
    """The mask of one layer for one image, and what the layer makes of the mask.

    Each of `mask` and `unmask` works once, in this order, in the process that made the pad.
    """

    def __init__(self, layer: Layer) -> None:
        self._layer = layer.name
        self._process = os.getpid()
        self._mask: torch.Tensor | None = uniform((1, *layer.shape))
        self._factor: torch.Tensor | None = modular(layer, self._mask)

    def mask(self, values: torch.Tensor) -> torch.Tensor:
        """(values + mask) modulo 2^32, of int32 `values` (1, \\*layer.shape).

        Raises:
            BlindingError: The mask was used, or belongs to a parent process.
        """
        mask, self._mask = self._mask, None
        if mask is None or os.getpid() != self._process:
            raise BlindingError(f"the mask of layer {self._layer!r} was used; take another pad")
        return add(values, mask)

    def unmask(self, answer: torch.Tensor) -> torch.Tensor:
        """(answer - factor) modulo 2^32: what the layer gives for the values that were masked.

        Raises:
            BlindingError: Nothing was masked with this pad, or the answer was unmasked before.
        """
        factor, self._factor = self._factor, None
        if factor is None or self._mask is not None:
            raise BlindingError(f"the pad of layer {self._layer!r} masks once, then unmasks once")
        return subtract(answer, factor)


class Pads(_Kept):
    """The pads of one image, one a layer, each handed out once."""

    def __init__(self, serial: int, layers: Sequence[Layer]) -> None:
        self.serial = serial
        self._left = {layer.name: Pad(layer) for layer in layers}

    def take(self, name: str) -> Pad:
        """The pad of the layer `name`.

        Raises:
            BlindingError: It was taken before, or there is no such layer.
        """
        try:
            return self._left.pop(name)
        except KeyError:
            raise BlindingError(
                f"`layer` {name!r} has no pad left in this request; send each layer once a request"
            ) from None


class Bank(_Kept):
    """Pads made ahead.

    Args:
        layers: The layers that will be blinded.
        capacity: Images that pads are kept for.
        when_empty: ``"make"`` more on the spot, or answer ``"busy"``.

    Attributes:
        identity: 16 random bytes, another for each bank; `serial` counts its pads from 0.

    Raises:
        BlindingError: A layer has sums that could wrap.
        UsageError: No such policy, or a capacity below 0.
    """

    def __init__(
        self, layers: Sequence[Layer], *, capacity: int = 1, when_empty: str = "make"
    ) -> None:
        if when_empty not in POLICIES:
            raise UsageError(f"`when_empty` got {when_empty!r}; use {' or '.join(POLICIES)}")
        if capacity < (1 if when_empty == "busy" else 0):
            raise UsageError(f"`capacity` got {capacity}; use 1 or more (0 with 'make')")
        self.layers = [layer.proved() for layer in layers]
        self.capacity = capacity
        self.when_empty = when_empty
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._ready: deque[Pads] = deque()
        self.identity = os.urandom(16)
        self.serial = 0

    def _own(self) -> None:
        if os.getpid() != self._process:
            self._begin()

    def __len__(self) -> int:
        """Images that pads are ready for."""
        self._own()
        return len(self._ready)

    @property
    def bytes_each(self) -> int:
        """Memory that the pads of one image take."""
        sizes = (_count(layer.shape) + _count(layer.output_shape) for layer in self.layers)
        return 4 * sum(sizes)

    def _make(self) -> Pads:
        with self._lock:
            serial, self.serial = self.serial, self.serial + 1
        return Pads(serial, self.layers)

    def fill(self, most: int | None = None) -> int:
        """Make up to `most` pads (None: until full) and return how many were made."""
        self._own()
        made = 0
        while (most is None or made < most) and len(self._ready) < self.capacity:
            pads = self._make()
            with self._lock:
                self._ready.append(pads)
            made += 1
        return made

    def take(self, images: int = 1) -> list[Pads]:
        """Pads for so many images, which are no longer in the bank.

        Raises:
            ServiceError: ``busy``: too few are ready, and the policy is not to make more; those
                that are ready stay.
        """
        self._own()
        with self._lock:
            ready = min(images, len(self._ready))
            if ready < images and self.when_empty == "busy":
                raise ServiceError(
                    "busy",
                    f"masks for {images} images were asked for and {ready} are ready; "
                    "ask again when more were made",
                )
            found = [self._ready.popleft() for _ in range(ready)]
        return found + [self._make() for _ in range(images - ready)]


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
