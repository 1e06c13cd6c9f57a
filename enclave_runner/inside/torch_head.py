"""The head worker with PyTorch.

python -m partopt.enclave_runner.inside.torch_head BUNDLE/head
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..program.torch_engine import ENGINE
from .head import main

if __name__ == "__main__":
    main(Path(sys.argv[1]), ENGINE)
