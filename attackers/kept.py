"""Feature files on disk: believed only when verified, pinned while in use, evicted otherwise.

Beside each file lie its size and SHA-256; what does not fit them is made again. Whoever uses a
cut's files holds a shared lock on its folder; whoever makes room takes only folders that it can
lock for itself. Both locks end with their process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import math
import os
import shutil
import stat
import weakref
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..cache import locked, make_way, read_sealed, try_lock, write_sealed, written_to, written_whole
from ..graph.build import Cut
from ..hashing import hash_json
from ..notices import notice
from .rows import OnDisk

Stats = tuple[np.ndarray, np.ndarray]
_CHUNK = 8 << 20
_PIN = ".pin"
_verified: set[tuple[Any, ...]] = set()  # files that this process has read through


class Pin:
    """A shared lock on a cut's folder; while this object lives nobody evicts what is in it."""

    def __init__(self, handle: int) -> None:
        self._close = weakref.finalize(self, os.close, handle)


class Shelf:
    """The feature files of one network on one set of images, one subfolder a cut.

    Args:
        folder: Of all networks' feature files, which share the budget.
        key: Content hash of what the features depend on.
        budget_bytes: At most so many bytes in `folder`.
    """

    def __init__(self, folder: Path, key: str, budget_bytes: int) -> None:
        self.folder = folder = Path(folder)
        self.budget_bytes = budget_bytes
        self._home = folder / key[:24]
        self._said = False

    def place(self, cut: Cut) -> Path:
        """The folder of a cut."""
        names = hash_json([spec.name for spec in cut.boundary])[:12]
        return self._home / f"{cut.name[:60].replace('/', '_')}-{names}"

    def pin(self, cut: Cut) -> Pin:
        """Keep a cut's files from being evicted."""
        place = self.place(cut)
        with written_to(place):
            while True:
                _be_folder(place)
                try:
                    handle = os.open(place / _PIN, os.O_RDWR | os.O_CREAT, 0o666)
                except FileNotFoundError:
                    continue  # evicted in this moment
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH)
                except OSError:
                    return Pin(handle)  # a file system without locks
                if _is_at(handle, place / _PIN):
                    return Pin(handle)
                os.close(handle)

    def has(self, cut: Cut, part: str) -> bool:
        """Whether a part seems to be there: its size is right, its content was not read."""
        try:
            about = read_sealed(self.place(cut) / f"{part}.json")
            return about is not None and self._size(cut, part) == about["bytes"]
        except (ValueError, TypeError, KeyError, OSError):
            return False

    def _size(self, cut: Cut, part: str) -> int:
        return (self.place(cut) / f"{part}.f16").stat().st_size

    def rows(self, cut: Cut, part: str, count: int, pin: Pin) -> OnDisk | None:
        """A part of `count` rows with the content that was written; None: missing or damaged."""
        place = self.place(cut)
        path = place / f"{part}.f16"
        try:
            about = read_sealed(place / f"{part}.json")
            if about is None:
                return None
            shape = tuple(int(n) for n in about["shape"])
            if math.prod(shape) * 2 != about["bytes"]:
                raise ValueError("its size is not that of its shape")
            stats = self._stats_digest(cut)
            if stats is None or about["stats"] != stats or shape[0] != count:
                return None  # normalised with others, or of other images
            _verify(path, about)
        except (ValueError, TypeError, KeyError) as error:
            self._damaged(path, error)
            return None
        return OnDisk(path, shape, "float16", pin)

    def stats(self, cut: Cut) -> Stats | None:
        """Channel statistics of a cut, each (1, C, 1, 1), or None: missing or damaged."""
        path = self.place(cut) / "stats.npz"
        try:
            about = read_sealed(path.with_suffix(".json"))
            if about is None:
                return None
            if not path.is_file():
                raise ValueError("it is no file")
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != about["sha256"]:
                raise ValueError("its digest is of another content")
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                found = arrays["mean"], arrays["scale"]
            if not all(np.isfinite(a).all() for a in found):
                raise ValueError("it has values that are not finite")
        except (ValueError, TypeError, KeyError, OSError) as error:
            self._damaged(path, error)
            return None
        return found

    def keep_stats(self, cut: Cut, stats: Stats) -> None:
        """Write channel statistics."""
        path = self.place(cut) / "stats.npz"
        _be_folder(path.parent)
        make_way(path)
        file = io.BytesIO()
        np.savez(file, mean=stats[0], scale=stats[1])
        with written_whole(path) as temporary:
            temporary.write_bytes(file.getvalue())
        write_sealed(
            path.with_suffix(".json"), {"sha256": hashlib.sha256(file.getvalue()).hexdigest()}
        )

    def note(self, cut: Cut, name: str) -> Any:
        """A small value kept beside a cut's files, or None: missing or damaged."""
        path = self.place(cut) / f"{name}.json"
        try:
            return read_sealed(path)
        except (ValueError, OSError) as error:
            self._damaged(path, error)
            return None

    def keep_note(self, cut: Cut, name: str, value: Any) -> None:
        """Keep a small JSON value beside a cut's files."""
        path = self.place(cut) / f"{name}.json"
        _be_folder(path.parent)
        write_sealed(path, value)

    def _stats_digest(self, cut: Cut) -> str | None:
        about = read_sealed(self.place(cut) / "stats.json")
        return None if about is None else str(about["sha256"])

    def writer(self, cut: Cut, part: str) -> Writer:
        """Begin to write a part."""
        place = self.place(cut)
        _be_folder(place)
        stats = self._stats_digest(cut)
        assert stats is not None, "statistics come first"
        return Writer(place / f"{part}.f16", stats)

    @contextlib.contextmanager
    def making(self, waiting: Callable[[], None]) -> Iterator[None]:
        """One process at a time makes features; the others then find them."""
        with locked(self.folder / ".lock", waiting):
            yield

    def bytes_of(self, cut: Cut) -> int:
        """Bytes of a cut's files that are there."""
        return _bytes_in(self.place(cut))

    def room(self, cut: Cut) -> int:
        """Bytes that features of `cut` and others may take; below 0 where too many are in use."""
        mine = self.place(cut)
        in_use = [p for p in self._folders() if p == mine or not _evicted(p, really=False)]
        return self.budget_bytes - sum(map(_bytes_in, in_use))

    def make_room(self, needed: int, cuts: Collection[Cut]) -> int:
        """Evict the oldest folders but those of `cuts` until `needed` more bytes fit.

        Returns:
            By how many bytes the budget will be exceeded all the same.
        """
        keep = {self.place(c) for c in cuts}
        for place in keep:
            for left in place.glob(".*.tmp"):  # of a process that was killed: none other writes
                left.unlink(missing_ok=True)
        sizes = {p: _bytes_in(p) for p in self._folders()}
        used = sum(sizes.values())
        for path in sorted(sizes, key=_modified):
            if used + needed <= self.budget_bytes:
                break
            if path not in keep and _evicted(path):
                used -= sizes[path]
        return max(0, used + needed - self.budget_bytes)

    def _folders(self) -> list[Path]:
        return [p for p in self.folder.glob("*/*") if p.is_dir()]

    def _damaged(self, path: Path, error: Exception) -> None:
        """Say so, once: files are damaged together."""
        if not self._said:
            self._said = True
            why = str(error) if isinstance(error, ValueError) else "what describes it is damaged"
            notice(f"the feature cache is damaged at {str(path)!r} ({why}): it is made again")


class Writer:
    """A part's file while it is written; it appears only when it is kept."""

    def __init__(self, path: Path, stats: str) -> None:
        self._path, self._stats = path, stats
        make_way(path)
        self._stack = contextlib.ExitStack()
        temporary = self._stack.enter_context(written_whole(path))
        with written_to(path):
            self._file = open(temporary, "wb")  # noqa: SIM115, closed with the stack
        self._stack.callback(self._file.close)
        self._digest = hashlib.sha256()
        self._rows, self._bytes = 0, 0
        self._shape: tuple[int, ...] = ()

    def add(self, maps: np.ndarray) -> None:
        """Append rows, float16."""
        with written_to(self._path):
            self._file.write(maps.data)
        self._digest.update(maps.data)
        self._rows += len(maps)
        self._bytes += maps.nbytes
        self._shape = maps.shape[1:]

    def keep(self) -> None:
        """Put the file in its place, and its size and digest beside it."""
        with written_to(self._path):
            self._file.close()
        self._stack.close()
        about = {
            "shape": [self._rows, *self._shape],
            "bytes": self._bytes,
            "sha256": self._digest.hexdigest(),
            "stats": self._stats,
        }
        write_sealed(self._path.with_suffix(".json"), about)
        _verified.add(_identity(self._path, about["sha256"]))

    def drop(self) -> None:
        """Leave nothing behind; after `keep` there is nothing left to do."""
        error = RuntimeError("dropped")
        self._stack.__exit__(RuntimeError, error, None)


def _identity(path: Path, digest: Any) -> tuple[Any, ...]:
    at = path.stat()
    return str(path), at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, digest


def _verify(path: Path, about: dict[str, Any]) -> None:
    """Read a file through, once a process; a ValueError says what is wrong with it."""
    try:
        known = _identity(path, about["sha256"])
        if known in _verified:
            return
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("it is no file")
        if known[3] != about["bytes"]:
            raise ValueError(f"it has {known[3]} bytes instead of {about['bytes']}")
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                if not np.isfinite(np.frombuffer(chunk, np.float16)).all():
                    raise ValueError("it has values that are not finite")
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    if digest.hexdigest() != about["sha256"]:
        raise ValueError("its digest is of another content")
    _verified.add(known)


def _be_folder(place: Path) -> None:
    """Make a cut's folder, whatever lies in its way."""
    for path in (place.parent, place):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            path.unlink(missing_ok=True)
    with written_to(place):
        place.mkdir(parents=True, exist_ok=True)


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _evicted(place: Path, really: bool = True) -> bool:
    """Remove a folder that nobody uses; False where somebody does. Or only find out."""
    if not really and not (place / _PIN).exists():
        return True
    try:
        handle = os.open(place / _PIN, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return False
    try:
        if not try_lock(handle, fcntl.LOCK_EX, without=False):
            return False
        if really:
            shutil.rmtree(place, ignore_errors=True)
        return True
    finally:
        os.close(handle)


def _bytes_in(place: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):
        for file in place.iterdir():
            with contextlib.suppress(OSError):
                total += file.lstat().st_size
    return total


def _modified(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except OSError:
        return 0.0
