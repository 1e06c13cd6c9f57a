"""Keep a tail worker running for a head that another service runs (two systemd units)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ..errors import ServiceError
from .bundles.bundle import read_bundle
from .launcher import launch_python
from .program.parts import Part
from .wire import areas
from .wire.start import start_from


def serve_tail(folder: Path, device: str, say: Callable[[str], None]) -> None:
    """Start the tail, and again whenever it ends; runs until interrupted.

    Args:
        folder: The bundle.
        device: ``cpu`` or ``cuda``.
        say: Told what happens.
    """
    read_bundle(folder)
    place = areas.shm_folder(Part.read(folder / "head").weights_sha256[:16])
    while True:
        note = areas.read_note(place)
        if note is None:
            time.sleep(1.0)
            continue
        start = start_from({**note, "device": device})
        try:
            worker = launch_python("enclave_runner.tail", str((folder / "tail").resolve()))
        except ServiceError as error:
            say(str(error))
            time.sleep(1.0)
            continue
        try:
            worker.control.send(**start.to_event())
            while (event := worker.control.read()) is not None:
                say(str(event.get("event")))
        finally:
            worker.stop(1.0)
        time.sleep(1.0)
