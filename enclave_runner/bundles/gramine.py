"""Gramine's own command line tools: where they come from, and how they are run."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from ...errors import BackendError

INSTALL = "https://gramine.readthedocs.io/en/stable/installation.html"


def run_tool(command: Sequence[str], folder: Path) -> None:
    """Run one of Gramine's tools in `folder`.

    Raises:
        BackendError: It failed; with its last line.
    """
    result = subprocess.run(list(command), cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        lines = (result.stderr.strip() or result.stdout.strip()).splitlines() or ["no message"]
        raise BackendError(f"{command[0]} failed: {lines[-1][:300]}")
