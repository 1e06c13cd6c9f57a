"""What one service has on the host for its two workers to meet in."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from ..errors import ServiceError
from .wire import areas
from .wire.filedrop import drop_files
from .wire.shm import area_bytes
from .wire.start import Start
from .wire.transport import Exchange


class Meeting:
    """Shared memory and files of one service, and where it keeps a manifest.

    Args:
        identity: Of the bundle: the folders are named after it.
        start: The head's start line.
        exchange: What crosses.
        enclave: The head runs inside Gramine, whose manifest names the folders.
        apart: The tail is another service's.

    Attributes:
        shm: Our place in shared memory, or None.
        drop: Folder of the frames of a hand-off by files.
        scratch: Folder for a manifest.
        descriptor: Of the shared memory, or -1.
    """

    def __init__(
        self, identity: str, start: Start, exchange: Exchange, *, enclave: bool, apart: bool
    ) -> None:
        self._identity, self._exchange = identity, exchange
        self._instance, self._transport = start.instance, start.transport
        self._enclave, self._apart = enclave, apart
        self._places: list[areas.Place] = []
        self.shm: areas.Place | None = None
        self._files: areas.Place | None = None
        self.drop = areas.drop_folder(identity) / f"{self._instance}.frames"
        self.scratch = Path()
        self._area = Path()
        self.descriptor = -1

    def take(self) -> None:
        """Take our part of the folders, and sweep out what the killed left there.

        Raises:
            ServiceError: A folder belongs to somebody else.
        """
        if self._enclave or self._transport == "shm" or self._apart:
            self.shm = self._place(areas.shm_folder(self._identity))
        if self._enclave or self._transport == "file":
            self._files = self._place(areas.drop_folder(self._identity))
        if self._enclave:
            self.scratch = self._place(areas.scratch_folder()).folder("manifest")

    def _place(self, home: Path) -> areas.Place:
        place = areas.Place(home, self._instance)
        self._places.append(place)
        return place

    def renew(self) -> str:
        """A new area for tensors, with no frame of the old one; its path for a start line.

        Raises:
            ServiceError: There is no room.
        """
        self._forget()
        if self._transport == "shm":
            assert self.shm is not None
            self.shm.path("area").unlink(missing_ok=True)
            self._area, self.descriptor = self.shm.file("area", area_bytes(self._exchange))
            return str(self._area)
        if self._transport == "file":
            assert self._files is not None
            shutil.rmtree(self.drop, ignore_errors=True)
            return str(self._files.frames("frames", drop_files(self._exchange)))
        return ""

    def hide(self) -> None:
        """Take the shared memory's name away, once the head has it open.

        A tail of another service still needs it.
        """
        if self._transport == "shm" and not self._apart:
            self._area.unlink(missing_ok=True)

    def _forget(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def leave(self) -> list[str]:
        """Remove all that is ours; says what was done."""
        self._forget()
        done = []
        for place in self._places:
            with contextlib.suppress(ServiceError):
                if (home := place.leave()) is not None:
                    done.append(f"removed what it had in {home}")
        self._places = []
        return done
