"""Files that a command will write: found wanting before the work, not after it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..errors import UsageError


def writable(path: Path, argument: str, *, replaced: bool = True) -> Path:
    """Make sure that a file can be written at `path`, and make the folders on the way to it.

    Args:
        path: The file; it need not exist.
        argument: What names it on the command line, for the error.
        replaced: The file is written beside and moved into place, which a device or a pipe is not.

    Returns:
        `path`.

    Raises:
        UsageError: It is a folder, or its folder cannot be made or written to.
    """
    try:
        if path.is_dir():
            raise UsageError(f"`{argument}` got {str(path)!r}, which is a folder; name a file")
        if path.exists() and not path.is_file():
            if replaced:
                raise UsageError(
                    f"`{argument}` got {str(path)!r}, which is no regular file; name one"
                )
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists():
            with path.open("ab"):
                pass
        else:  # the name itself may be too long, or not allowed there
            path.touch()
            path.unlink()
    except OSError as error:
        raise UsageError(_cannot(argument, path, error)) from error
    return path


def folder(path: Path, argument: str) -> Path:
    """Make sure that a new folder can be made at `path`, or files in it, and that it is no file.

    Raises:
        UsageError: It cannot.
    """
    try:
        if path.exists() and not path.is_dir():
            raise UsageError(f"`{argument}` got {str(path)!r}, which is a file; name a folder")
        beside = path if path.is_dir() else path.parent
        beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=beside):
            pass
        if not path.exists():
            path.mkdir()
            path.rmdir()
    except OSError as error:
        raise UsageError(_cannot(argument, path, error)) from error
    return path


def _cannot(argument: str, path: Path, error: OSError) -> str:
    reason = (error.strerror or type(error).__name__).lower()
    where = "" if error.filename in (None, str(path)) else f" at {error.filename}"
    return (
        f"`{argument}` got {str(path)!r}, which cannot be written{where} ({reason}); name another "
        "place"
    )
