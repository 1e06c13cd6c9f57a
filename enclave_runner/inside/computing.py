"""The head's computation: one thread takes requests in turn, decodes, and runs the program."""

from __future__ import annotations

import time

import numpy as np

from ...errors import ServiceError
from ..program.parts import Part
from ..wire.messages import Control
from ..wire.start import Start
from .clock import now
from .decoding import decoded
from .fair import FairQueue
from .memory import kept as kept_memory
from .opening import Weights
from .prices import Prices
from .reports import text_of
from .requests import Request, Run
from .tails import Tails


class Computing:
    """Runs what waits, for ever.

    Args:
        part, start: The head, and how it was started.
        weights: Open by the time that something waits.
        tails: Where boundary tensors go.
        waiting: Where requests come from.
        control: Where to report.
    """

    def __init__(
        self,
        part: Part,
        start: Start,
        weights: Weights,
        tails: Tails,
        waiting: FairQueue[Request],
        control: Control,
    ) -> None:
        self._part, self._start, self._weights = part, start, weights
        self._tails, self._waiting, self._control = tails, waiting, control
        assert part.preprocessing is not None
        self._preprocessing = part.preprocessing
        self._prices = Prices(part.preprocessing, part.limits)

    def run(self) -> None:
        """Take requests, up to a batch of those that wait, when there is room for a run."""
        while True:
            first = self._waiting.take()
            self._tails.wait_for_a_slot()
            batch = [] if first is None else [first]
            while len(batch) < self._start.batch and (more := self._waiting.take(0.0)) is not None:
                batch.append(more)
            self._run(batch)

    def _run(self, batch: list[Request]) -> None:
        kept, images = [], []
        for request in batch:
            image = self._prepared(request)
            if image is not None:
                kept.append(request)
                images.append(image)
        if not kept:
            self._tails.give_back()
            return
        run, begun = Run(kept), time.perf_counter()
        try:
            assert self._weights.program is not None
            with kept_memory():
                tensors = self._weights.program(np.concatenate(images))
        except Exception as error:  # nothing of an image may stop the worker
            self._tails.give_back()
            self._failed(error)
            run.refuse("internal", f"the head failed ({type(error).__name__})")
            return
        took = max(time.perf_counter() - begun, 0.0)
        for request in kept:
            request.times["head"] = took
            charge = self._prices.of_pass(took / len(kept), self._weights.pass_s)
            self._waiting.charge(request.session, charge)
        try:
            self._tails.hand_over(run, tensors)
        except Exception as error:
            self._failed(error)

    def _prepared(self, request: Request) -> np.ndarray | None:
        """The request's image as the network's input; None if there is nothing to compute."""
        request.times["queue"] = now() - request.since
        if request.session.gone:
            request.refuse("late", "the client left")
            return None
        if request.times["queue"] > self._start.timeout:
            request.refuse("late", "the request waited for too long; ask again later")
            return None
        image, begun, worked = request.image, time.perf_counter(), self._prices.clock()
        try:
            return decoded(image, self._preprocessing, self._part.limits)
        except ServiceError as error:
            request.refuse(error.code, str(error))
        except MemoryError:
            request.refuse("too-large", "the image does not fit into memory")
        except Exception as error:  # what the worker lacks is no fault of the image
            self._failed(error)
            request.refuse("internal", f"the head worker failed ({type(error).__name__})")
        finally:
            request.image = b""
            request.times["preprocess"] = max(time.perf_counter() - begun, 0.0)
            worked = self._prices.clock() - worked
            self._waiting.charge(request.session, self._prices.of_picture(image, worked))
        return None

    def _failed(self, error: Exception) -> None:
        self._control.send(event="error", kind=type(error).__name__, text=text_of(error))
