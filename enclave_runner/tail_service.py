"""Keep a tail worker running for a head that another service runs (two systemd units)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import FrameError, PartoptError, ServiceError
from . import notes
from .bundles.bundle import FILE, digest, read_bundle
from .hearing import EVERY_S, Hearing
from .launcher import How, launch_python
from .program.parts import Part
from .wire import areas
from .wire.start import Start, start_from

_PAUSE_S = 1.0


def serve_tail(
    folder: Path, device: str, say: Callable[[str], None], how: How, timeout: float = 60.0
) -> None:
    """Start the tail, and again whenever it ends, hangs or is wanted anew; until interrupted.

    Args:
        folder: The bundle.
        device: ``cpu`` or ``cuda``.
        say: Told what happens.
        how: Where its output goes, and how long its start may take.
        timeout: Seconds until a tail that says nothing counts as hung.

    Raises:
        BundleError: The bundle is damaged.
    """
    read_bundle(folder)
    bundle = digest(folder / FILE)
    home = areas.shm_folder(Part.read(folder / "head").weights_sha256[:16])
    said = ""
    while True:
        with notes.taken(home, bundle) as note:
            text = "waiting for a head worker of this bundle" if note is None else ""
            if text and text != said:
                say(text)
            said = text
            if note is not None:
                tail = _Tail(folder, note, bundle, say)
                while (found := note.read(bundle)) is not None:
                    try:
                        tail.serve(found, device, how, timeout)
                    except PartoptError as error:
                        say(str(error))
                    time.sleep(_PAUSE_S)
        time.sleep(_PAUSE_S)


class _Tail:
    """The tail worker of one head's service."""

    def __init__(
        self, folder: Path, note: notes.Note, bundle: str, say: Callable[[str], None]
    ) -> None:
        self._folder, self._note, self._bundle, self._say = folder, note, bundle, say

    def serve(self, found: dict[str, Any], device: str, how: How, timeout: float) -> None:
        """Run one worker until it ends, or until its head wants another.

        Raises:
            PartoptError: It did not start, or hangs.
        """
        start = _start(found, device)
        hearing = Hearing(lambda name, event: self._say(json.dumps(event)[:400]))
        started = launch_python(
            "enclave_runner.tail", str((self._folder / "tail").resolve()), how=how
        )
        try:
            worker = hearing.hear("tail", started)
            started.control.send(**start.to_event())
            hearing.wait(worker, "ready", how.timeout)
            every = min(EVERY_S, timeout / 4)
            asked = time.monotonic()
            while not worker.ended and self._note.read(self._bundle) == found:
                hearing.next(_PAUSE_S)
                if time.monotonic() - asked >= every:
                    asked = time.monotonic()
                    if worker.unanswered * every > timeout:
                        raise ServiceError("tail-lost", "the tail worker hangs; it is killed")
                    worker.ask()
            if worker.ended:
                self._say(worker.how_it_ended())
        finally:
            started.stop(1.0)


def _start(found: dict[str, Any], device: str) -> Start:
    start = found.get("start")
    if not isinstance(start, dict):
        raise FrameError("malformed", "the head's service left a note without a start line")
    return start_from({**start, "device": device})
