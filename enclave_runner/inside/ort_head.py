"""The head worker with ONNX Runtime, without PyTorch.

python -m partopt.enclave_runner.inside.ort_head BUNDLE/head
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..program.ort_engine import ENGINE
from .head import main


def start(folder: Path) -> None:
    """Serve until the orchestrator goes."""
    main(folder, ENGINE)


if __name__ == "__main__":
    start(Path(sys.argv[1]))
