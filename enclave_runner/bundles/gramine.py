"""Gramine as it is installed here: its command line tools, and where its libraries lie."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import BackendError

INSTALL = "https://gramine.readthedocs.io/en/stable/installation.html"
_LIBPAL = re.compile(r'^LIBPAL_PATH="?([^"\n]+?)"?$', re.MULTILINE)


@dataclass(frozen=True)
class Installation:
    """Where an installed Gramine keeps what every manifest names.

    Attributes:
        libos: The library that an enclave starts with.
        runtime: Folder of the C library that programs inside get.
    """

    libos: Path
    runtime: Path

    def libraries(self) -> list[Path]:
        """All files of the runtime, sorted."""
        return sorted(p for p in self.runtime.rglob("*") if p.is_file())


def installed() -> Installation:
    """The Gramine whose ``gramine-direct`` or ``gramine-sgx`` is on PATH.

    These are shell scripts that name their library; beside it lie the others. Nothing is run, and
    no template is rendered.

    Raises:
        BackendError: There is none, or it lacks a part.
    """
    for tool in ("gramine-direct", "gramine-sgx"):
        found = shutil.which(tool)
        if found is None:
            continue
        for folder in _package_folders(Path(found).resolve()):
            libos, runtime = folder / "libsysdb.so", folder / "runtime" / "glibc"
            if libos.is_file() and runtime.is_dir():
                return Installation(libos, runtime.resolve())
        raise BackendError(
            f"{found} is on PATH, but not the libraries that belong to it; install Gramine anew "
            f"({INSTALL})"
        )
    raise BackendError(f"gramine-direct and gramine-sgx are not on PATH; install one ({INSTALL})")


def _package_folders(tool: Path) -> list[Path]:
    """Where the tool's libraries may lie, the place that it names itself first."""
    with open(tool, "rb") as file:
        named = _LIBPAL.findall(file.read(1 << 16).decode(errors="replace"))
    prefix = tool.parent.parent
    usual = [prefix / "lib" / "x86_64-linux-gnu", prefix / "lib64", prefix / "lib"]
    return [*(Path(n).parent.parent for n in named), *(p / "gramine" for p in usual)]


def run_tool(command: Sequence[str], folder: Path) -> None:
    """Run one of Gramine's tools in `folder`.

    Raises:
        BackendError: It failed; with its last line.
    """
    result = subprocess.run(list(command), cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        lines = (result.stderr.strip() or result.stdout.strip()).splitlines() or ["no message"]
        raise BackendError(f"{command[0]} failed: {lines[-1][:300]}")
