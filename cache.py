"""Where caches live, and how files appear in them whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UsageError


def cache_dir(*parts: str) -> Path:
    """The cache folder: ``$PARTOPT_CACHE``, else ``$XDG_CACHE_HOME/partopt``, else in ~/.cache.

    Raises:
        UsageError: It cannot be made.
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
        raise UsageError(
            f"`PARTOPT_CACHE` gives the cache folder {str(path)!r}, which cannot be made "
            f"({(error.strerror or type(error).__name__).lower()}); name another place with it"
        ) from error
    return path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
