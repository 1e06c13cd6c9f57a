"""Whether a file lies on a network file system, where other locks hold than on a disk."""

from __future__ import annotations

import re
from pathlib import Path

_KINDS = {"nfs", "nfs3", "nfs4"}
_MOUNTS = Path("/proc/self/mounts")


def on_nfs(path: Path, mounts: str | None = None) -> bool:
    """Whether `path` lies on NFS.

    Args:
        path: A file, which need not exist yet.
        mounts: What is mounted where, as ``/proc/self/mounts`` has it; None reads that.
    """
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text()
        except OSError:
            return False  # no Linux: as it was before
    place = path.resolve()
    kind, deepest = "", -1
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(_plain(fields[1]))
        # Of two mounts at one place the later one hides the earlier.
        if place.is_relative_to(point) and len(point.parts) >= deepest:
            kind, deepest = fields[2], len(point.parts)
    return kind in _KINDS


def _plain(text: str) -> str:
    """A path of the table, in which spaces and the like are octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
