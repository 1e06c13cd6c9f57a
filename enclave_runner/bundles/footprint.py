"""What a worker opens and how much memory it takes, seen in a native run of its own code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ExportError

_RUNNER = __package__.rpartition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Files that were opened; bytes of the libraries mapped, of the runtime alone, and in all.

    ``clients``: bytes that clients may make a head take beyond that, at most.
    """

    files: list[str]
    libraries: int
    runtime: int
    peak: int
    clients: int
    prefixes: list[str]


def rehearse(folder: Path, batch: int, key: bytes, shape: Sequence[int] = ()) -> Seen:
    """Run a head (or with batch 0 a profile worker, on inputs of `shape`) and say what it needed.

    Raises:
        ExportError: The head does not run on its own.
    """
    result = subprocess.run(
        [
            *(sys.executable, "-I", "-B", "-m", f"{_RUNNER}.inside.rehearsal"),
            *(str(folder), str(batch), *map(str, shape)),
        ],
        input=key.hex(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    if result.returncode != 0:
        last = result.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ExportError(f"the exported head does not run on its own: {last[0][:300]}")
    return Seen(**json.loads(result.stdout.splitlines()[-1]))
