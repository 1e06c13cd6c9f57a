"""Where the two workers meet on the host: a folder in shared memory, and one for files.

The folders' names are fixed by the bundle, because a signed manifest names them, so that several
services of one bundle share them. Gramine's shared memory has no folders in folders: what belongs
to a service is told by its random name, and by a lock that it holds for as long as it lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...errors import ServiceError

_LOCK = "lock"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def shm_folder(identity: str) -> Path:
    """Folder of the shared memory of the bundle `identity`."""
    return Path("/dev/shm") / f"partopt-{identity}"


def drop_folder(identity: str) -> Path:
    """Folder of its file hand-off, on a disk."""
    return Path("/var/tmp") / f"partopt-{identity}"


def scratch_folder() -> Path:
    """Folder of this user's temporary files, whatever the bundle."""
    return Path(tempfile.gettempdir()) / f"partopt-{os.getuid()}"


def claim(folder: Path) -> Path:
    """Make `folder` ours alone.

    Raises:
        ServiceError: Somebody else owns it, or it cannot be made.
    """
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            folder.chmod(0o700)
            return folder
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ServiceError("area", f"{folder} cannot be used: {error.strerror}") from None
    raise ServiceError("area", f"{folder} belongs to somebody else; remove it")


class Place:
    """What one service has in `home`, a folder that services share: all is named INSTANCE.WHAT.

    Whoever comes or goes removes what the killed left behind: what no lock is held for.

    Args:
        home: The folder.
        instance: The service's random name, 16 hex digits.

    Raises:
        ServiceError: `home` belongs to somebody else, or has no room.
    """

    def __init__(self, home: Path, instance: str) -> None:
        self._home, self._instance = home, instance
        with _locked(home):
            _sweep(home)
            with _room(home, 0):
                self._lock = os.open(self.path(_LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def path(self, what: str) -> Path:
        """Where `what` of this service lies."""
        return self._home / f"{self._instance}.{what}"

    def file(self, what: str, size: int) -> tuple[Path, int]:
        """A new file of `size` bytes, ours alone, and its open descriptor.

        The bytes are there from the beginning: memory that were only promised would end whoever
        writes to it, later and without a word.

        Raises:
            ServiceError: There is no room.
        """
        path = self.path(what)
        with _room(self._home, size):
            allocated(path, size)
        return path, os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def folder(self, what: str) -> Path:
        """A new folder, ours alone."""
        path = self.path(what)
        with _room(self._home, 0):
            path.mkdir(mode=0o700)
        return path

    def frames(self, what: str, files: dict[str, int]) -> Path:
        """A new folder with files of so many bytes, by name.

        Raises:
            ServiceError: There is no room.
        """
        path = self.folder(what)
        with _room(self._home, sum(files.values())):
            for name, size in files.items():
                allocated(path / name, size)
        return path

    def leave(self) -> Path | None:
        """Remove what is ours, and the folder if nobody else is there; gives what was removed."""
        if self._lock < 0:
            return None
        with _locked(self._home):
            os.close(self._lock)
            self._lock = -1
            _sweep(self._home)
            with contextlib.suppress(OSError):
                self._home.rmdir()
        return self._home


def allocated(path: Path, size: int) -> None:
    """Make a file of `size` bytes that has them, or none at all."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if size:
            os.posix_fallocate(descriptor, 0, size)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(descriptor)


def alive(home: Path, instance: str) -> bool:
    """Whether the service `instance` holds its lock."""
    try:
        descriptor = os.open(home / f"{instance}.{_LOCK}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Nobody else comes, goes or sweeps meanwhile."""
    if not home.parent.is_dir():
        raise ServiceError("area", f"{home.parent} is missing; use another --transport")
    descriptor = -1
    while descriptor < 0:
        with contextlib.suppress(FileNotFoundError):  # somebody who left has just removed it
            descriptor = os.open(claim(home), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is(home, descriptor):
                os.close(descriptor)
                descriptor = -1
    try:
        yield
    finally:
        os.close(descriptor)


def _is(home: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(home), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sweep(home: Path) -> None:
    """Remove what belongs to no living service."""
    names = {path.name.partition(".")[0] for path in home.iterdir()}
    dead = {name for name in names if not alive(home, name)}
    for path in home.iterdir():
        if path.name.partition(".")[0] in dead:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _room(home: Path, size: int) -> Iterator[None]:
    """Say in one sentence that there is no room for `size` bytes."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise ServiceError("area", f"{home} cannot be used: {error.strerror}") from None
        there = os.statvfs(home.parent)
        free = there.f_bavail * there.f_frsize
        memory = home.parent == Path("/dev/shm")
        way = "give it more (docker run --shm-size) or use --transport tcp"
        raise ServiceError(
            "no-room",
            f"{home.parent} has {free >> 10} KiB free and the hand-off needs {size >> 10} KiB; "
            + (way if memory else "free some, or use --transport shm"),
        ) from None
