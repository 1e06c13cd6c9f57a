"""What a worker prints: the end is kept here, and all of it in a log file if one is asked for."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from pathlib import Path
from typing import IO

from ..errors import UsageError

KEPT = 1 << 16
# A log file that has grown to this many bytes becomes NAME.1, in the place of the one before it.
MOST = 16 << 20
_PIECE = 1 << 14


class Output:
    """Reads a worker's output until it ends, in a thread.

    A worker that prints without end fills neither memory nor the disk.

    Args:
        stream: The worker's stdout and stderr.
        log: A file to append to, or None.

    Raises:
        UsageError: `log` cannot be written.
    """

    def __init__(self, stream: IO[bytes], log: Path | None = None) -> None:
        self._stream, self._log = stream, log
        self._pieces: deque[bytes] = deque(maxlen=KEPT // _PIECE)
        try:
            self._file = _opened(log) if log is not None else None
        except UsageError:
            stream.close()
            raise
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    def said(self) -> str:
        """The last of what was printed."""
        return b"".join(list(self._pieces)).decode(errors="replace")

    def last_line(self) -> str:
        """The last line of a worker that has ended."""
        self._thread.join(1.0)
        lines = self.said().strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"

    def close(self) -> None:
        """Wait for the end of the output of a worker that has ended."""
        self._thread.join(1.0)

    def _pump(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while piece := os.read(self._stream.fileno(), _PIECE):
                if self._pieces and len(self._pieces[-1]) + len(piece) <= _PIECE:
                    self._pieces[-1] += piece
                else:
                    self._pieces.append(piece)
                with contextlib.suppress(OSError):  # a full disk stops no worker
                    self._keep(piece)
        self._stream.close()
        if self._file is not None:
            self._file.close()

    def _keep(self, piece: bytes) -> None:
        if self._file is None or self._log is None:
            return
        if self._file.tell() + len(piece) > MOST:
            self._file.close()
            os.replace(self._log, self._log.with_name(f"{self._log.name}.1"))
            self._file = _opened(self._log)
        self._file.write(piece)


def _opened(log: Path) -> IO[bytes]:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(
            f"`logs` got {str(log.parent)!r}, which cannot be written: {error.strerror}"
        ) from None
    file = os.fdopen(descriptor, "ab", buffering=0)
    file.seek(0, os.SEEK_END)
    return file
