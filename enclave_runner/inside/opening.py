"""The head's weights: sealed until somebody gives their key, and checked against it ever after."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...errors import BundleError
from ..program.engine import Engine, Runs
from ..program.parts import Part
from ..wire.start import Start
from .memory import kept


class Weights:
    """What runs a head, once its weights are open.

    Args:
        folder, part: The head.
        start: Its largest batch and its threads.
        engine: What runs it.
        opened: Told how many seconds opening took.

    Attributes:
        program: None while the weights are sealed.
        pass_s: Seconds of a pass, for each image of a full batch.
    """

    def __init__(
        self,
        folder: Path,
        part: Part,
        start: Start,
        engine: Engine,
        opened: Callable[[float], None],
    ) -> None:
        self._folder, self._part, self._start = folder, part, start
        self._engine, self._opened = engine, opened
        self._lock = threading.Lock()
        self._key_hash = b""
        self.program: Runs | None = None
        self.pass_s = 0.0

    def open(self, key: bytes) -> None:
        """Load the weights; if they are open, check that `key` is theirs.

        Raises:
            BundleError: It is not, or the files were changed.
        """
        said = hashlib.sha256(b"partopt key" + key).digest()
        with self._lock:
            if self.program is not None:
                if self._part.seal != "none" and not hmac.compare_digest(said, self._key_hash):
                    raise BundleError("the weights are open, and this is not their key")
                return
            begun = time.perf_counter()
            program = self._engine.load(self._folder, self._part, key, self._start.threads)
            (layout,) = self._part.inputs
            for batch in sorted([1, 1, self._start.batch, self._start.batch]):
                started = time.perf_counter()
                with kept():
                    program(np.zeros(layout.at(batch), np.float32))
                self.pass_s = max(time.perf_counter() - started, 0.0) / batch
            self._key_hash, self.program = said, program
            self._opened(max(time.perf_counter() - begun, 0.0))
