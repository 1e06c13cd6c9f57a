"""Where caches live, and how files appear in them whole or not at all and are believed again."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import StorageError, UsageError

# What a disk says when it takes no more, and what is said of a path that cannot be written.
_REFUSALS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
}
_FULL = {errno.ENOSPC, errno.EDQUOT}


def cache_dir(*parts: str) -> Path:
    """The cache folder: ``$PARTOPT_CACHE``, else ``$XDG_CACHE_HOME/partopt``, else in ~/.cache.

    Raises:
        UsageError: It cannot be made.
        StorageError: The disk is full.
    """
    root = os.environ.get("PARTOPT_CACHE")
    if root:
        base = Path(root)
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "partopt"
    path = base.joinpath(*parts)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(refusal(path, error)) from error
        raise UsageError(
            f"`PARTOPT_CACHE` gives the cache folder {str(path)!r}, which cannot be made "
            f"({(error.strerror or type(error).__name__).lower()}); name another place with it"
        ) from error
    return path


@contextmanager
def written_to(path: Path) -> Iterator[None]:
    """Within the block, what the disk of `path` refuses is a `StorageError` of one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise StorageError(refusal(path, error)) from error


def refusal(path: str | Path, error: OSError) -> str:
    """One sentence: what could not be written, why, and what to do."""
    what = f"{str(path)!r} cannot be written ({error.strerror})"
    if error.errno in _FULL:
        return f"{what}: make room there and run the same command again"
    if error.errno == errno.EISDIR:
        return f"{what}: it names a folder, name a file"
    return f"{what}: make it writable, or name another place"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place only if the block succeeds.

    File and folder are on the disk before this returns: after a power cut there is the old file or
    the new one, never one of zeros.

    Raises:
        StorageError: The disk is full, or refuses for another reason.
    """
    with written_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        mark = f"{os.getpid()}-{threading.get_native_id()}"
        temporary = path.with_name(f".{path.name}.{mark}.tmp")
        try:
            yield temporary
            _to_disk(temporary)
            os.replace(temporary, path)
            with suppress(OSError):  # some file systems have no such thing for folders
                _to_disk(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def nothing_cached() -> Iterator[Path]:
    """Inside, the cache is an empty folder that nobody else has written to; it is removed after."""
    before = os.environ.get("PARTOPT_CACHE")
    fresh = Path(tempfile.mkdtemp(prefix="fresh-", dir=cache_dir()))
    os.environ["PARTOPT_CACHE"] = str(fresh)
    try:
        yield fresh
    finally:
        if before is None:
            del os.environ["PARTOPT_CACHE"]
        else:
            os.environ["PARTOPT_CACHE"] = before
        shutil.rmtree(fresh, ignore_errors=True)


def make_way(path: Path) -> None:
    """Remove a folder that lies where a file of the cache belongs."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)


def write_sealed(path: Path, value: Any) -> None:
    """Write a JSON value to a file of the cache, with its digest."""
    make_way(path)
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps({"sha256": _digest(value), "value": value}))


def read_sealed(path: Path) -> Any:
    """The value that `write_sealed` wrote, or None where there is no such file.

    Raises:
        ValueError: It is not what was written; in a phrase, what is wrong.
    """
    try:
        if not path.is_file():
            if path.exists():
                raise ValueError("it is no file")
            return None
        sealed = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(str(error) if "no file" in str(error) else "it is no JSON") from None
    if not isinstance(sealed, dict) or set(sealed) != {"sha256", "value"}:
        raise ValueError("it has no digest")
    if sealed["sha256"] != _digest(sealed["value"]):
        raise ValueError("its digest is of another content")
    return sealed["value"]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the exclusive lock on `path` (a file of its own); it ends with the process.

    Args:
        path: The lock's file, made where missing.
        waiting: Called again and again while another process or thread has it.
    """
    with written_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        pause = 0.002
        while not try_lock(handle, fcntl.LOCK_EX):
            waiting()
            time.sleep(pause)
            pause = min(2 * pause, 0.25)
        yield
    finally:
        os.close(handle)


def try_lock(handle: int, kind: int, without: bool = True) -> bool:
    """Whether the open file now has the lock; `without` where the file system has no locks."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as error:
        taken = error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
        return without and not taken
    return True
