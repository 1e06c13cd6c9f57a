"""The Gramine manifest of a worker, rendered from data by this code alone.

``gramine-manifest`` is not used: it takes a template, and a template is a program. What it adds are
the places of the installed Gramine (`gramine`) and hashes of trusted files. Entry point, arguments
and environment are constants here. Only files that a worker was seen to open are trusted; the root
is an empty tmpfs, and what is mounted into it are the folders of those files. Syntax: Gramine 1.9,
"Manifest syntax".
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import BackendError, ExportError
from ..program.parts import GRAMINE_KEY, GRAMINE_WEIGHTS
from ..wire.messages import PORT_VARIABLE, TOKEN_VARIABLE
from .archive import Archive, inside
from .footprint import Seen
from .gramine import Installation

# Gramine brings its own C library; the host's must not be found beside it.
_GLIBC = (
    *("libc.so", "libm.so", "libdl.so", "libpthread.so", "librt.so", "libutil.so", "libanl.so"),
    *("libresolv.so", "libmvec.so", "libnss_", "libBrokenLocale.so", "libthread_db.so", "ld-linux"),
)
INSIDE = "/bundle/head"
# Every worker's: GNU OpenMP's short spins, no telemetry of ONNX Runtime's, and memory that stays
# with the process: activations of a thread of its own would otherwise be returned to the system and
# faulted in again at every image.
ENVIRONMENT = {
    "GOMP_SPINCOUNT": "2000",
    "ORT_DISABLE_TELEMETRY": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
}
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class GramineWorker:
    """A program to run inside Gramine.

    Attributes:
        module: Dotted name of the module below partopt.
        folder: The worker's data on the host; relative to where Gramine is started, or absolute.
        names: Files in it that the worker may read.
        trusted: Whether those are measured with the enclave; data of a profile is only allowed.
        files: Other files to trust.
        prefixes: Python's own folders.
        sealed: File that Gramine decrypts, or None.
        shm, drop: Folders on the host for shared memory and for files, or "".
        enclave_size: Bytes, a power of two.
        max_threads: Enclave threads.
    """

    module: str
    folder: str
    names: Sequence[str]
    trusted: bool
    files: Sequence[str]
    prefixes: Sequence[str]
    sealed: str | None = None
    shm: str = ""
    drop: str = ""
    enclave_size: int
    max_threads: int


def size_enclave(seen: Seen, threads: int) -> tuple[int, int]:
    """Enclave size in bytes (a power of two, as SGX1 wants it) and number of enclave threads.

    Mapped libraries lie in the enclave whole, not only the pages that are used; memory that was
    seen at the peak gets half as much again, for allocators that return it late. What clients may
    take is a bound already.
    """
    max_threads = threads + 16
    need = seen.libraries + int(1.5 * seen.peak) + seen.clients + max_threads * 2 * _MIB + 64 * _MIB
    size = 1 << max(need - 1, 1).bit_length()
    return size, max_threads


def render(
    worker: GramineWorker, gramine: Installation, where: Path, modules: tuple[str, Archive]
) -> str:
    """The manifest's text, as ``gramine-direct`` and ``gramine-sgx-sign`` take it.

    Args:
        worker: What to run.
        modules: Where the archive of its Python modules lies, and the archive.
        gramine: Where its libraries lie.
        where: The folder that Gramine is started in, to which the worker's may be relative.

    Raises:
        ExportError: A path that cannot stand in a manifest.
        BackendError: A file that is not there any more.
    """
    place, archive = modules
    folders = _folders(worker)
    library_path = ":".join(["/lib", *_library_folders(worker.files, worker.prefixes)])
    mounts = [
        _mount("/lib", str(gramine.runtime)),
        _mount("/lib64", str(gramine.runtime)),
        *(_mount(p, p) for p in folders),
        _mount(INSIDE, worker.folder),
        _mount(inside(), place),
    ]
    trusted = [str(gramine.libos), *map(str, gramine.libraries())]
    trusted += [f for f in archive.files if not _is_glibc(f)]
    allowed: list[str] = []
    own = [f"{worker.folder}/{name}" for name in worker.names]
    if worker.trusted:
        trusted += own
    else:
        allowed += [_q(f"file:{name}") for name in own]
    if worker.shm:
        shm = _q("dev:" + worker.shm)
        mounts.append(f'{{ type = "untrusted_shm", path = {_q(worker.shm)}, uri = {shm} }}')
        allowed.append(_q(f"dev:{worker.shm}/"))
    if worker.drop:
        mounts.append(_mount(worker.drop, worker.drop))
        allowed.append(_q(f"file:{worker.drop}/"))
    if worker.sealed is not None:
        uri = _q("file:" + worker.sealed)
        mounts.append(
            f'{{ type = "encrypted", path = {_q(GRAMINE_WEIGHTS)}, uri = {uri}, '
            f'key_name = "{GRAMINE_KEY.rpartition("/")[2]}" }}'
        )
    environment = "\n".join(f"loader.env.{n} = {_q(v)}" for n, v in ENVIRONMENT.items())
    package, _, name = worker.module.rpartition(".")
    argv = [sys.executable, "-I", "-B", "-m", f"partopt.{package}.archived", name, INSIDE]
    measured = [_measured(name, where) for name in dict.fromkeys(trusted)]
    measured.append(f'{{ uri = {_q("file:" + place)}, sha256 = "{archive.sha256}" }}')
    return f"""\
# Rendered by partopt from what a bundle says that its head worker needs.
loader.entrypoint.uri = {_q(f"file:{gramine.libos}")}
loader.entrypoint.sha256 = "{_hash(gramine.libos)}"
loader.log_level = "error"
loader.argv = [{", ".join(_q(a) for a in argv)}]
loader.env.LD_LIBRARY_PATH = {_q(library_path)}
loader.env.LC_ALL = "C.UTF-8"
{environment}
loader.env.PARTOPT_BACKEND = "gramine"
loader.env.{PORT_VARIABLE} = {{ passthrough = true }}
loader.env.{TOKEN_VARIABLE} = {{ passthrough = true }}

libos.entrypoint = {_q(os.path.realpath(sys.executable))}
sys.disallow_subprocesses = true
sys.enable_sigterm_injection = true
sys.stack.size = "1M"

fs.root.type = "tmpfs"
fs.mounts = [
  {_lines(mounts)}
]

sgx.debug = false
sgx.enclave_size = "{worker.enclave_size // _MIB}M"
sgx.max_threads = {worker.max_threads}
sgx.remote_attestation = "dcap"
sgx.trusted_files = [
  {_lines(measured)}
]
sgx.allowed_files = [
  {_lines(allowed)}
]
"""


def _q(text: str) -> str:
    """A TOML string."""
    if not text.isprintable():
        raise ExportError(f"the path {text[:80]!r} cannot stand in a manifest; use another folder")
    return json.dumps(text, ensure_ascii=False)


def _measured(name: str, where: Path) -> str:
    return f'{{ uri = {_q("file:" + name)}, sha256 = "{_hash(where / name)}" }}'


def _hash(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BackendError(
            f"{str(path)!r}, which the head worker needs, cannot be read ({error.strerror}); "
            "export the bundle again on this machine"
        ) from None


def _mount(inside: str, outside: str) -> str:
    return f"{{ path = {_q(inside)}, uri = {_q('file:' + outside)} }}"


def _lines(items: Sequence[str]) -> str:
    return "\n  ".join(f"{item}," for item in items)


def _is_glibc(path: str) -> bool:
    return Path(path).name.startswith(_GLIBC)


def _folders(worker: GramineWorker) -> list[str]:
    """Folders to mount: Python's own, and those of all other trusted files, outermost only."""
    real = {os.path.realpath(p) for p in worker.prefixes}
    folders = {*worker.prefixes, *real, *(str(Path(f).parent) for f in worker.files)}
    folders = {
        f for f in folders if not f.startswith(("/lib/", "/lib64/")) and f not in ("/lib", "/")
    }
    kept: list[str] = []
    for folder in sorted(folders):
        if not any(folder == k or folder.startswith(k + "/") for k in kept):
            kept.append(folder)
    return kept


def _library_folders(files: Sequence[str], prefixes: Sequence[str]) -> list[str]:
    """Folders of shared libraries, Python's own before the distribution's."""
    folders = {str(Path(f).parent) for f in files if ".so" in Path(f).name}
    own = sorted(
        f for f in folders if any(f.startswith(p) for p in prefixes) and f.endswith("/lib")
    )
    system = sorted(f for f in folders if f.startswith("/usr/lib"))
    return [*own, *system]
