"""Where the two workers meet on the host: a folder in shared memory, and one for files.

The names are fixed by the bundle, because a signed manifest names them; what lies in them has
unpredictable names and is gone as soon as both sides have it open.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import time
from pathlib import Path
from typing import Any

from ...cache import written_whole
from ...errors import ServiceError

NOTE = "tail.json"


def shm_folder(identity: str) -> Path:
    """Folder of the shared memory of the bundle `identity`."""
    return Path("/dev/shm") / f"partopt-{identity}"


def drop_folder(identity: str) -> Path:
    """Folder of its file hand-off, on a disk."""
    return Path("/var/tmp") / f"partopt-{identity}"


def claim(folder: Path) -> Path:
    """Make `folder` ours alone.

    Raises:
        ServiceError: Somebody else owns it.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ServiceError("area", f"{folder} belongs to somebody else; remove it")
    folder.chmod(0o700)
    return folder


def create(folder: Path, size: int) -> tuple[Path, int]:
    """A new file of `size` bytes in `folder`, ours alone, and its open descriptor."""
    path = folder / f"area-{secrets.token_hex(8)}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.ftruncate(descriptor, size)
    return path, descriptor


def leave_note(folder: Path, start: dict[str, Any]) -> None:
    """Tell a tail that another service starts where to find the head worker."""
    path = folder / NOTE
    with written_whole(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(start, file)


def read_note(folder: Path) -> dict[str, Any] | None:
    """The note that is there, if any."""
    try:
        found = json.loads((folder / NOTE).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def release(folder: Path) -> None:
    """Remove what a killed orchestrator may have left, and the folder if it is then empty.

    Files that both sides have open have no name any more; one that has kept its name for a minute
    belongs to nobody.
    """
    for path in folder.glob("*"):
        with contextlib.suppress(OSError):
            if path.name != NOTE and time.time() - path.stat().st_mtime > 60:
                path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
