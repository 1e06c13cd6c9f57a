"""The one place that imports torchvision.

torchvision's Linux wheels are built against CUDA. Beside a CPU-only torch their C extension does
not load, and then the Python side fails on the missing operators ``torchvision::nms`` and
``torchvision::qnms``, which it only wants to annotate. Classification models call neither, so the
two schemas (as in torchvision/csrc/ops/nms.cpp and ops/quantized) are declared, without a kernel,
if and only if importing torchvision failed for want of them. The library object must be kept: its
schemas are withdrawn when it is collected.
"""

from __future__ import annotations

import importlib
import sys

import torch

_SCHEMAS = ("nms", "qnms")
_library: torch.library.Library | None = None


def _declare_missing_ops() -> None:
    global _library
    if _library is None:
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for op in _SCHEMAS:
            if not hasattr(torch.ops.torchvision, op):
                _library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _import() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declare_missing_ops()
        importlib.import_module("torchvision")


_import()

import torchvision.models as models  # noqa: E402
from torchvision.models.feature_extraction import NodePathTracer  # noqa: E402

__all__ = ["NodePathTracer", "models"]
