"""The worker's Python modules as one archive of compiled code, for Gramine.

Inside, every file is of the year 1970, so that Python takes no ``__pycache__`` for fresh and
compiles a thousand sources at each start; and each file that is opened is measured on its own. So
modules are compiled here, on the machine that starts the enclave and from its own files, and lie in
the archive that Python looks into first. Their ``.pyc`` are of the kind that is never compared with
a source (PEP 552, unchecked). The same sources give the same bytes, so that a signed enclave's
archive can be made anew and compared. What is no Python, and packages that look for their own
files, stay as they are.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import marshal
import os
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import BackendError
from .bundle import MODULES

NAME = MODULES
# Packages whose code reads files beside it.
_WHOLE = ("torch", "torchgen", "sympy", "mpmath", "safetensors", "tqdm", "functorch")
_UNCHECKED = 1
_PACKAGE = Path(__file__).resolve().parents[2]
_OLDEST = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Archive:
    """A zip of modules.

    Attributes:
        data: Its bytes.
        files: What was asked for and is not in it.
    """

    data: bytes
    files: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Its hash, hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()


def inside() -> str:
    """Where Python looks for an archive of modules before anything else."""
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    usual = os.path.join(sys.base_prefix, sys.platlibdir, f"python{version}.zip")
    return next((p for p in sys.path if os.path.basename(p) == f"python{version}.zip"), usual)


def archived(files: Sequence[str]) -> Archive:
    """The Python modules among `files` as an archive, and the rest.

    Raises:
        BackendError: A file that cannot be read.
    """
    roots = _roots()
    inner: dict[str, str] = {}
    left = []
    for path in sorted(files):
        name = _name(path, roots)
        if name is None or name.split("/")[0] in _WHOLE or name in inner:
            left.append(path)
        else:
            inner[name] = path
    # Python finds its library by this file.
    left += [p for n, p in inner.items() if n == "os.py"]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(inner):
            entry = zipfile.ZipInfo(f"{name}c", _OLDEST)
            archive.writestr(entry, _compiled(inner[name], name))
    return Archive(packed.getvalue(), tuple(left))


def _roots() -> list[tuple[str, str]]:
    """Folders of modules, with what stands before the names in them; the innermost first."""
    found = {p: "" for p in sys.path if os.path.isdir(p)}
    found |= {os.path.realpath(p): "" for p in found}
    found[str(_PACKAGE)] = "partopt/"  # also where somebody stands in it, and Python looks there
    return sorted(found.items(), key=lambda item: -len(item[0]))


def _name(path: str, roots: Sequence[tuple[str, str]]) -> str | None:
    """A module's path below its root; None for what is no module."""
    if not path.endswith(".py"):
        return None
    for root, before in roots:
        if path.startswith(root.rstrip("/") + "/"):
            return before + path[len(root.rstrip("/")) + 1 :]
    return None


def _compiled(path: str, name: str) -> bytes:
    try:
        source = Path(path).read_bytes()
        code = compile(source, f"<{name}>", "exec", dont_inherit=True, optimize=0)
    except (OSError, SyntaxError, ValueError) as error:
        raise BackendError(
            f"{path!r}, which the worker needs, cannot be compiled ({error}); export again"
        ) from None
    head = importlib.util.MAGIC_NUMBER + _UNCHECKED.to_bytes(4, "little")
    # Version 2 has no references, whose places depend on what else is alive while it is written.
    return head + importlib.util.source_hash(source) + marshal.dumps(code, 2)
