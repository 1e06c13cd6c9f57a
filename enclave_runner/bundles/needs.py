"""``enclave.json``: what the head worker needs of an enclave, as data.

Which files of the machine it opens, how much memory and how many threads it takes. What is made of
that (entry point, arguments, mounts) stands in our own code (`manifest`), and a file is believed
only where a Python of this machine keeps its files: a bundle of somebody else's gets at nothing
else.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import BundleError
from ..program.parts import PROGRAM, SPEC, Part
from ..program.plain_json import bounded, parsed
from ..wire.areas import drop_folder, shm_folder
from .bundle import NEEDS, sealed_file
from .footprint import Seen
from .manifest import GramineWorker, size_enclave

SCHEMA = 1
MAX_BYTES, MAX_FILES, MAX_PATH = 4 << 20, 20_000, 4096
MAX_ENCLAVE, MAX_THREADS = 1 << 40, 4096
_SYSTEM = ("/usr/lib", "/usr/lib64", "/usr/share", "/usr/local/lib", "/lib", "/lib64")
_SINGLE = ("/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf", "/etc/host.conf")
_PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a head worker needs: files of the machine, the enclave's bytes, its threads."""

    files: tuple[str, ...]
    enclave_size: int
    max_threads: int

    @classmethod
    def of(cls, seen: Seen, threads: int) -> Needs:
        """From what a rehearsal saw, for so many compute threads."""
        enclave_size, max_threads = size_enclave(seen, threads)
        return cls(files=tuple(seen.files), enclave_size=enclave_size, max_threads=max_threads)

    def write(self, folder: Path) -> None:
        """Write ``enclave.json``."""
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, ensure_ascii=False, indent=0)
        (folder / NEEDS).write_text(text + "\n")

    @classmethod
    def read(cls, folder: Path) -> Needs:
        """Read ``enclave.json``.

        Raises:
            BundleError: Not what `export` writes on this machine.
        """
        if not (folder / NEEDS).is_file():
            raise BundleError(
                f"{str(folder)!r} has no {NEEDS}: the bundle is of an older partopt; export again"
            )
        data = parsed(bounded(folder / NEEDS, MAX_BYTES), NEEDS)
        if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
            raise BundleError(f"{NEEDS!r} is of another version of partopt; export again")
        if data.keys() != set(cls.__dataclass_fields__):
            raise BundleError(f"{NEEDS!r} is not as export writes it; export again")
        size, threads, files = data["enclave_size"], data["max_threads"], data["files"]
        whole = _is_whole(size, MAX_ENCLAVE) and _is_whole(threads, MAX_THREADS)
        if not whole or size & (size - 1) or size < 1 << 20:
            raise BundleError(f"{NEEDS!r} asks for an enclave that there is none of; export again")
        if not isinstance(files, list) or len(files) > MAX_FILES:
            raise BundleError(f"{NEEDS!r} has no list of files; export again")
        roots = _roots()
        for name in files:
            _held(name, roots)
        return cls(files=tuple(files), enclave_size=size, max_threads=threads)


def head_module(part: Part) -> str:
    """The module of the head worker that runs `part`, below partopt."""
    return f"enclave_runner.inside.{part.engine}_head"


def worker_of(folder: Path) -> GramineWorker:
    """The head worker of the bundle in `folder`, as its manifest holds it.

    Raises:
        BundleError: As `Needs.read` and `Part.read`.
    """
    needs, part = Needs.read(folder), Part.read(folder / "head")
    sealed = f"head/{sealed_file(part.engine, part.seal)}"
    by_gramine = part.seal == "gramine"
    identity = part.weights_sha256[:16]
    return GramineWorker(
        module=head_module(part),
        folder="head",
        names=[SPEC, PROGRAM, *([] if by_gramine else [Path(sealed).name])],
        trusted=True,
        files=needs.files,
        prefixes=sorted({sys.prefix, sys.base_prefix}),
        sealed=sealed if by_gramine else None,
        shm=str(shm_folder(identity)),
        drop=str(drop_folder(identity)),
        enclave_size=needs.enclave_size,
        max_threads=needs.max_threads,
    )


def _is_whole(value: Any, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def _roots() -> tuple[str, ...]:
    """Folders in which a Python of this machine, and partopt, keep their files."""
    own = {sys.prefix, sys.base_prefix, str(_PACKAGE), *(p for p in sys.path if p)}
    own |= {os.path.realpath(p) for p in own}
    return tuple(f"{root.rstrip('/')}/" for root in (*own, *_SYSTEM) if root.rstrip("/"))


def _held(name: Any, roots: tuple[str, ...]) -> None:
    """Raise unless `name` is a file that a Python of this machine may open."""
    if not isinstance(name, str) or len(name) > MAX_PATH or os.path.normpath(name) != name:
        raise BundleError(f"{NEEDS!r} names the file {str(name)[:80]!r}; export again")
    if name in _SINGLE or name.startswith(roots):
        return
    raise BundleError(
        f"{NEEDS!r} names {name[:120]!r}, which is no file of this machine's Python: the bundle "
        "was exported elsewhere; export it here (without Gramine it still runs)"
    )
