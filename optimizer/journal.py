"""Trials in a journal file that outlives torn lines, full disks and processes that died.

The format is Optuna's, a JSON record a line. A record without its end, or that is no JSON, was
being written when power, disk or process failed; it and what follows are set aside in a copy, since
later records count on those before. What is left is the journal as it once was: nothing is wrong.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileOpenLock

from ..cache import refusal, try_lock
from ..errors import StorageError, UsageError
from ..notices import notice
from .nfs import on_nfs

_STALE_S = 10.0  # Optuna holds its lock for milliseconds
_PATIENCE_S = 120.0
_BEGINS = b'{"op_code"'
_NOTHING = b"\0 \t\r\n"


class DamageError(Exception):
    """A line that is no record: its number, and where it begins in bytes."""

    def __init__(self, line: int, offset: int) -> None:
        super().__init__(f"line {line}")
        self.line, self.offset = line, offset


class ReplacedError(StorageError):
    """Another process has put another file in the journal's place."""


def open_journal(path: Path, ours: bool) -> JournalStorage:
    """Open the journal at `path`, made where missing; mend what a crash left.

    Args:
        path: The file.
        ours: It can be nothing but a journal. Of other files only what begins like one is mended.

    Raises:
        UsageError: It is no journal, or has records that this version of Optuna cannot read.
        StorageError: It cannot be written, or another process never unlocks it.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"`storage` got {str(path)!r}, which is no file; name a .journal file")
    for _ in range(3):
        journal = Journal(path)
        try:
            journal.mend_end(ours)
            return JournalStorage(journal)
        except ReplacedError:
            continue  # by a process that mends it at the same time
        except DamageError as damage:
            if damage.offset == 0 and not ours:
                raise UsageError(
                    f"`storage` got {str(path)!r}, whose first line is no record of a journal; "
                    "move the file away, or name another one"
                ) from None
            journal.set_aside(damage)
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise UsageError(
                f"`storage` got {str(path)!r}, whose line {journal.line} this version of Optuna "
                f"cannot read ({type(error).__name__}); move the file away to begin a new one, or "
                "name another one"
            ) from error
    raise StorageError(f"the journal {str(path)!r} is damaged again and again; name another one")


class Journal(BaseJournalBackend):
    """The file behind a `JournalStorage`.

    Writers exclude each other by a lock on the file, which ends with its holder, and by Optuna's
    symbolic link ``FILE.lock`` for programs that know only that; a link that a dead process left
    behind is removed. On NFS, where hosts may not see each other's locks, ``FILE.lock`` is Optuna's
    `JournalFileOpenLock` instead.

    Attributes:
        line: Number of the line read last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.line = 0
        self._open_lock = JournalFileOpenLock(str(path)) if on_nfs(path) else None
        with self._spoken():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as file:
                self._file = os.fstat(file.fileno())
        self._begins = [(0, 0)]  # of each record: line, offset

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Records from a number on; one that is being written now is left for the next time."""
        with self._spoken():
            file = open(self.path, "rb")  # noqa: SIM115, closed below
        with file:
            line, offset = self._begins[log_number_from]
            self._check(os.fstat(file.fileno()), offset)
            del self._begins[log_number_from + 1 :]
            file.seek(offset)
            for text in file:
                if not text.endswith(b"\n"):
                    return
                record = _record(text)
                if record is None and text.strip():
                    raise DamageError(line + 1, offset)
                line, offset = line + 1, offset + len(text)
                if record is None:  # a blank line, which an editor left
                    self._begins[-1] = (line, offset)
                    continue
                self.line = line
                self._begins.append((line, offset))
                yield record

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records, all or none, and see them on the disk."""
        data = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        with self._held() as handle:
            self._cut_torn(handle)
            size = os.fstat(handle).st_size
            try:
                with self._spoken():
                    left = memoryview(data)
                    while left:
                        left = left[os.write(handle, left) :]
                    os.fsync(handle)
            except BaseException:
                os.ftruncate(handle, size)  # no half record stays
                raise

    def mend_end(self, ours: bool) -> None:
        """Cut a last record that has no end, unless the file is somebody's and no journal."""
        with open(self.path, "rb") as file:
            first = file.read(1 << 16)
        start = first.lstrip(_NOTHING)[: len(_BEGINS)]
        if not ours and not _BEGINS.startswith(start):
            raise UsageError(
                f"`storage` got {str(self.path)!r}, which is no journal; name another file"
            )
        with self._held() as handle:
            self._cut_torn(handle)

    def set_aside(self, damage: DamageError) -> None:
        """Keep the records before a damaged line; the file as it was stays beside, as a copy."""
        with self._held() as handle:
            size = os.fstat(handle).st_size
            rest = os.pread(handle, min(size - damage.offset, 1 << 26), damage.offset)
            if _record(rest.partition(b"\n")[0] + b"\n") is not None:
                return  # somebody else has mended it
            if not rest.partition(b"\n")[2] and len(rest) == size - damage.offset:
                self._cut(handle, damage.offset, damage.line)
                return
            copy, fresh = self._beside("damaged"), self._beside("new")
            with self._spoken():
                shutil.copyfile(self.path, copy)
                try:
                    with open(self.path, "rb") as old, open(fresh, "wb") as new:
                        _copy(old.fileno(), new.fileno(), 0, damage.offset)
                        os.fsync(new.fileno())
                    # Not cut in place: a process that has read further must notice.
                    os.replace(fresh, self.path)
                finally:
                    fresh.unlink(missing_ok=True)
        notice(
            f"the journal {str(self.path)!r} is damaged in line {damage.line}: it goes on with the "
            f"{damage.line - 1} lines before it, the file as it was is {copy.name!r}"
        )

    def _cut_torn(self, handle: int) -> None:
        """Cut what stands behind the last end of a line; the lock is held, so nobody writes it."""
        size = os.fstat(handle).st_size
        if not size or os.pread(handle, 1, size - 1) == b"\n":
            return
        end, step = size, 1 << 16
        while end > 0:
            begin = max(0, end - step)
            found = os.pread(handle, end - begin, begin).rfind(b"\n")
            if found >= 0:
                end = begin + found + 1
                break
            end = begin
        self._cut(handle, end, None)

    def _cut(self, handle: int, offset: int, line: int | None) -> None:
        size = os.fstat(handle).st_size
        copy = self._beside("torn")
        with self._spoken():
            with open(copy, "wb") as file:
                _copy(handle, file.fileno(), offset, size)
                os.fsync(file.fileno())
            os.ftruncate(handle, offset)
            os.fsync(handle)
        where = f"line {line}" if line else "its last record"
        notice(
            f"the journal {str(self.path)!r} was torn in {where}: {size - offset} bytes were cut "
            f"off and kept in {copy.name!r}; what was not finished runs again"
        )

    def _beside(self, what: str) -> Path:
        number = 1
        while (path := self.path.with_name(f"{self.path.name}.{what}-{number}")).exists():
            number += 1
        return path

    def _check(self, now: os.stat_result, known: int = 0) -> None:
        """That this is still the file whose records were read, with all of them."""
        if not os.path.samestat(now, self._file) or now.st_size < known:
            raise ReplacedError(
                f"the journal {str(self.path)!r} was replaced or cut by another program; run the "
                "same command again"
            )

    @contextlib.contextmanager
    def _spoken(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"the journal {refusal(self.path, error)}") from error

    @contextlib.contextmanager
    def _held(self) -> Iterator[int]:
        """Hold both locks; give the file, open for reading and appending."""
        with self._spoken():
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND)
        try:
            began, said, pause = time.monotonic(), False, 0.001
            while not try_lock(handle, fcntl.LOCK_EX):
                waited = time.monotonic() - began
                if waited > _PATIENCE_S:
                    raise StorageError(
                        f"the journal {str(self.path)!r} is locked by another process for "
                        f"{waited:.0f} s; end that process, or give another --storage"
                    )
                if waited > _STALE_S and not said:
                    said = True
                    notice(f"waiting for the lock of the journal {str(self.path)!r}")
                time.sleep(pause)
                pause = min(2 * pause, 0.1)
            with self._spoken():
                now = os.stat(self.path)
            self._check(now)
            with self._known_to_optuna():
                yield handle
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def _known_to_optuna(self) -> Iterator[None]:
        """Hold the lock that programs know which know only Optuna's."""
        if self._open_lock is not None:
            with self._spoken():
                self._open_lock.acquire()
            try:
                yield
            finally:
                with contextlib.suppress(RuntimeError):  # taken for stale, and removed
                    self._open_lock.release()
            return
        link = Path(f"{self.path}.lock")
        linked = _link(link, self.path)
        try:
            yield
        finally:
            if linked:
                link.unlink(missing_ok=True)


def _record(text: bytes) -> dict[str, Any] | None:
    """A line as a record of a journal, or None."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _copy(source: int, target: int, begin: int, end: int) -> None:
    while begin < end:
        data = os.pread(source, min(1 << 20, end - begin), begin)
        if not data:
            return
        begin += len(data)
        while data:
            data = data[os.write(target, data) :]


def _link(link: Path, target: Path) -> bool:
    """Make the lock that Optuna knows; False where the file system has no symbolic links.

    Whoever holds the lock on the file is the only one of us here: a link that does not go away was
    left behind by a process that died, or is Optuna's own.
    """
    began, seen, since = time.monotonic(), None, time.monotonic()
    while True:
        try:
            os.symlink(os.path.abspath(target), link)
            return True
        except FileExistsError:
            pass
        except OSError:
            return False
        try:
            there = link.lstat()
        except FileNotFoundError:
            continue
        if (there.st_ino, there.st_mtime_ns) != seen:
            seen, since = (there.st_ino, there.st_mtime_ns), time.monotonic()
        old = time.time() - there.st_mtime > _STALE_S and time.monotonic() - since > 1.0
        if old or time.monotonic() - since > _STALE_S:
            notice(
                f"removed {str(link)!r}, the lock of a process that died while it wrote the "
                f"journal (waited {time.monotonic() - began:.0f} s)"
            )
            with contextlib.suppress(OSError):
                link.unlink()
            continue
        time.sleep(0.01)
