"""partopt: find where to part a neural network between an enclave and an untrusted accelerator.

    graph = partopt.trace(model, example_input)
    cuts = graph.cuts("clean")
    head, tail = partopt.split(graph, cuts[5])
    result = partopt.find("efficientnet_b0", ssim=0.2)

Names are loaded when first used, so that ``import partopt`` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import SplitConfig
    from .errors import PartoptError
    from .graph.build import Cut, LayerGraph, Node, TensorSpec, trace
    from .graph.splitting import split
    from .models.load import LoadedModel, load_model
    from .optimizer.find import SplitResult, find

_HOME = {
    "Cut": ".graph.nodes",
    "LayerGraph": ".graph.build",
    "LoadedModel": ".models.load",
    "Node": ".graph.nodes",
    "PartoptError": ".errors",
    "SplitConfig": ".config",
    "SplitResult": ".optimizer.find",
    "TensorSpec": ".graph.nodes",
    "find": ".optimizer.find",
    "load_model": ".models.load",
    "split": ".graph.splitting",
    "trace": ".graph.build",
}

__version__ = "0.2.0"

__all__ = [
    "Cut",
    "LayerGraph",
    "LoadedModel",
    "Node",
    "PartoptError",
    "SplitConfig",
    "SplitResult",
    "TensorSpec",
    "__version__",
    "find",
    "load_model",
    "split",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'partopt' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
