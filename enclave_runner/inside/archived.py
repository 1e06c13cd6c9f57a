"""Starts a worker whose modules lie in an archive.

    python -m partopt.enclave_runner.inside.archived WORKER FOLDER

Compiled modules cannot lie there: those of a package in the archive are looked for where the
package is installed.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

WORKERS = ("torch_head", "ort_head", "probe", "ort_probe")


class Beside:
    """Finds what an archive lacks in the folders that Python looks into."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See ``importlib.abc.MetaPathFinder``."""
        *parents, _ = name.split(".")
        folders = [os.path.join(p, *parents) for p in sys.path if os.path.isdir(p)]
        return PathFinder.find_spec(name, folders) if parents else None


def main(worker: str, folder: Path) -> None:
    """Import the worker and start it."""
    if worker not in WORKERS:
        raise SystemExit(f"there is no worker {worker!r}")
    sys.meta_path.append(Beside)
    importlib.import_module(f".{worker}", __package__).start(folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
