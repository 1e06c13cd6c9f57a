"""The inside of a blinded layer: mask, send, unmask, check, and end the request where it fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ..errors import BlindingError, IntegrityError
from .check import Check
from .layers import Layer
from .masks import Bank, Pads
from .outside import Outside

PHASES = ("mask", "outside", "unmask", "check")


@dataclass
class Counts:
    """What an engine did.

    Attributes:
        requests: Requests that began.
        failed: Requests that a failed check ended.
        seconds: Wall time by layer and phase (`PHASES`), summed over all requests.
    """

    requests: int = 0
    failed: int = 0
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)


class Engine:
    """Runs blinded layers on an outside that is not trusted.

    Args:
        layers: The layers, each name once.
        outside: What computes on masked values.
        bank: Masks for these layers; None makes them on the spot.

    Raises:
        BlindingError: A layer has sums that could wrap, two have one name, or the bank is of
            other layers.
    """

    def __init__(self, layers: Sequence[Layer], outside: Outside, bank: Bank | None = None) -> None:
        self.layers = {layer.name: layer for layer in layers}
        self.bank = bank if bank is not None else Bank(layers, capacity=0)
        if len(self.layers) < len(layers) or list(self.bank.layers) != list(layers):
            raise BlindingError("`layers` holds a name twice, or `bank` was made for other layers")
        self._checks = {layer.name: Check(layer) for layer in layers}
        self._outside = outside
        self._lock = threading.Lock()
        self.counts = Counts(seconds={n: dict.fromkeys(PHASES, 0.0) for n in self.layers})

    @property
    def check_bytes(self) -> int:
        """Memory inside that the checks' secrets take."""
        return sum(c.bytes for c in self._checks.values())

    def request(self, images: int = 1) -> Request:
        """Begin a request of so many images: their masks are taken now.

        Raises:
            ServiceError: ``busy``: masks are used up, and the bank does not make more.
        """
        pads = self.bank.take(images)
        with self._lock:
            self.counts.requests += 1
        return Request(self, pads)

    @contextmanager
    def _timed(self, name: str, phase: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begun
            with self._lock:
                self.counts.seconds[name][phase] += spent

    def _run(self, name: str, pads: list[Pads], values: torch.Tensor) -> torch.Tensor:
        layer = self.layers[name]
        low, high = (int(v) for v in torch.aminmax(values))
        if values.dtype != torch.int32 or values.shape != (len(pads), *layer.shape):
            raise BlindingError(
                f"`values` got {values.dtype} {tuple(values.shape)} for layer {name!r}; use int32 "
                f"{(len(pads), *layer.shape)}"
            )
        if max(-low, high) > layer.limit:
            raise BlindingError(
                f"`values` reach from {low} to {high} at layer {name!r}, whose sums are proved for "
                f"magnitudes up to {layer.limit}; clamp them"
            )
        taken = [p.take(name) for p in pads]
        with self._timed(name, "mask"):
            masked = _each(values, [p.mask for p in taken])
        with self._timed(name, "outside"):
            answer = self._outside(name, masked)
        wanted = (len(pads), *layer.output_shape)
        if (
            not isinstance(answer, torch.Tensor)
            or answer.dtype != torch.int32
            or answer.device.type != "cpu"
            or tuple(answer.shape) != wanted
        ):
            raise IntegrityError(name, f"what came back for layer {name!r} is no int32 {wanted}")
        # Read here and nowhere else: the host may go on writing to the area that it lies in, and
        # what is checked must be what is used.
        with self._timed(name, "unmask"):
            found = _each(answer, [p.unmask for p in taken])
        with self._timed(name, "check"):
            passed = self._checks[name].passes(values, found)
        if not passed:
            raise IntegrityError(
                name,
                f"what came back for layer {name!r} is not what the layer gives; the outside "
                "computes wrongly or was tampered with, so nothing of this request is used",
            )
        return found


def _each(
    values: torch.Tensor, calls: Sequence[Callable[[torch.Tensor], torch.Tensor]]
) -> torch.Tensor:
    """Each image through the call of its own pad."""
    if len(calls) == 1:
        return calls[0](values)
    return torch.cat([call(v[None]) for call, v in zip(calls, values, strict=True)])


class Request:
    """One request's way through the layers; over once a check fails or anything else goes wrong."""

    def __init__(self, engine: Engine, pads: list[Pads]) -> None:
        self._engine = engine
        self._pads = pads
        self._over = False

    def compute(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """The layer `name` on `values`, as if it had been computed inside.

        Args:
            name: One of the engine's layers, each at most once a request.
            values: (images, \\*layer.shape), int32 of magnitude up to the layer's limit.

        Returns:
            (images, \\*layer.output_shape), int32: the integers themselves, without a bias.

        Raises:
            IntegrityError: The outside's answer is wrong. It is counted, and the request is over.
            BlindingError: The request is over, the layer unknown or used, or values out of range.
        """
        if self._over or name not in self._engine.layers:
            raise BlindingError(
                f"`layer` {name!r} is unknown, or this request is over; begin another"
            )
        done = False
        try:
            found = self._engine._run(name, self._pads, values)
            done = True
        except IntegrityError:
            with self._engine._lock:
                self._engine.counts.failed += 1
            raise
        finally:
            self._over = not done
        return found
