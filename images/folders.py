"""Which files below a folder are pictures, and what else lies there.

Links are followed, to folders too; a folder or file that several ways lead to counts once, under
the way with the fewest links. Nothing that might be a picture is passed over without a word.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from ..printable import printable

# Read by other programs (Ghostscript runs code), or only named by Pillow and never decoded.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
_NO_PICTURES = {
    ".cfg",
    ".csv",
    ".db",
    ".htm",
    ".html",
    ".ini",
    ".ipynb",
    ".json",
    ".jsonl",
    ".lnk",
    ".log",
    ".md",
    ".md5",
    ".mat",
    ".parquet",
    ".pdf",
    ".pkl",
    ".pt",
    ".pth",
    ".py",
    ".rst",
    ".sh",
    ".sha256",
    ".sha1",
    ".toml",
    ".tsv",
    ".txt",
    ".url",
    ".xml",
    ".yaml",
    ".yml",
}
_NO_PICTURE_NAMES = {"license", "copying", "readme", "makefile", "notice", "authors"}
_KINDS_SHOWN = 8


@dataclass
class Found:
    """What lies below a folder.

    Attributes:
        pictures: Files with a suffix that Pillow decodes here, sorted.
        unread: Other files by suffix ("" for none), but those that are known to be no pictures.
        other: Files that are no pictures, by suffix; ``"hidden"`` for hidden ones.
        dangling: Links that lead nowhere, relative to the folder.
        closed: Folders that cannot be listed, each with the reason.
    """

    pictures: list[Path]
    unread: Counter[str] = field(default_factory=Counter)
    other: Counter[str] = field(default_factory=Counter)
    dangling: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    def said(self) -> list[str]:
        """What the user must know, in sentences without a full stop."""
        told = []
        if self.unread:
            told.append(
                f"{_kinds(self.unread)} were not read: Pillow has no decoder here; convert them "
                "to PNG or JPEG if they are pictures"
            )
        if self.closed:
            told.append(f"{len(self.closed)} folders cannot be listed: {_few(self.closed)}")
        if self.dangling:
            told.append(f"{len(self.dangling)} links lead nowhere: {_few(self.dangling)}")
        return told

    def skipped(self) -> list[str]:
        """The same for the list of what was skipped, one entry a kind."""
        return [
            *(f"{_files(kind, n)} (Pillow has no decoder here)" for kind, n in _most(self.unread)),
            *(f"{name} (cannot be listed)" for name in self.closed),
            *(f"{name} (the link leads nowhere)" for name in self.dangling),
        ]

    def holds(self) -> str:
        """What else is there, for a folder without pictures."""
        return f"it holds {_kinds(self.other)}" if self.other else "it holds no other file"


@cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are decoded here, the common ones first."""
    Image.preinit()
    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_DECODED)


@cache
def suffixes() -> frozenset[str]:
    """Suffixes of these formats, in lower case with the dot."""
    known = set(formats())
    return frozenset(s for s, name in Image.registered_extensions().items() if name in known)


def search(folder: Path) -> Found:
    """Look through `folder` and all folders below it."""
    found = Found([])
    files: dict[str, Path] = {}
    # Folders that links lead to come last, so that a file is known by its own place.
    own, linked = [folder], list[Path]()
    seen: set[str] = set()
    while own or linked:
        where = own.pop() if own else linked.pop(0)
        real = os.path.realpath(where)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(where), key=lambda e: e.name)
        except OSError as error:
            found.closed.append(f"{_name(where, folder)} ({error.strerror})")
            continue
        for entry in entries:
            path = where / entry.name
            link = entry.is_symlink()
            if link and not os.path.exists(path):
                found.dangling.append(_name(path, folder))
            elif entry.is_dir():
                if not link:
                    own.append(path)
                elif not _is_above(os.path.realpath(path), real):
                    linked.append(path)
            elif entry.is_file():
                target = os.path.realpath(path) if link else f"{real.rstrip('/')}/{entry.name}"
                if target not in files or files[target].is_symlink():
                    files[target] = path
    for path in files.values():
        _sort_in(path, folder, found)
    found.pictures.sort()
    return found


def _is_above(real: str, inside: str) -> bool:
    """Whether a link to `real` goes round in a circle, from the folder `inside`."""
    return (inside + "/").startswith(real.rstrip("/") + "/")


def _sort_in(path: Path, folder: Path, found: Found) -> None:
    suffix = path.suffix.lower()
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    if suffix in suffixes() and not path.name.startswith("._"):  # macOS keeps attributes in those
        found.pictures.append(path)
    elif hidden:
        found.other["hidden"] += 1
    elif suffix in _NO_PICTURES or path.name.lower() in _NO_PICTURE_NAMES:
        found.other[suffix] += 1
    else:
        found.unread[suffix] += 1


def _name(path: Path, folder: Path) -> str:
    return printable(str(path.relative_to(folder)))


def _few(names: list[str], shown: int = 5) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def _most(kinds: Counter[str]) -> list[tuple[str, int]]:
    return sorted(kinds.items(), key=lambda item: (-item[1], item[0]))


def _kinds(kinds: Counter[str]) -> str:
    """``120 .heic files, 1 file without a suffix``, the most frequent first."""
    listed = _most(kinds)
    text = ", ".join(_files(kind, n) for kind, n in listed[:_KINDS_SHOWN])
    rest = sum(n for _, n in listed[_KINDS_SHOWN:])
    return text + (f", {rest} others" if rest else "")


def _files(kind: str, count: int) -> str:
    files = "file" if count == 1 else "files"
    if not kind:
        return f"{count} {files} without a suffix"
    return f"{count} {printable(kind)} {files}"
