"""The head worker with PyTorch.

python -m partopt.enclave_runner.inside.torch_head BUNDLE/head
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..program.torch_engine import ENGINE
from .head import main


def start(folder: Path) -> None:
    """Serve until the orchestrator goes."""
    main(folder, ENGINE)


if __name__ == "__main__":
    start(Path(sys.argv[1]))
