"""What a network's linear layers take in, measured on training images, once and for all requests.

A scale that was chosen for each request would tell the outside how large its values are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..errors import DataError, PlanError


@dataclass(frozen=True)
class Range:
    """What entered one layer: smallest and largest value, and one image's shape.

    ``rows`` is whether its first dimension was the batch in every pass.
    """

    low: float
    high: float
    shape: tuple[int, ...]
    rows: bool = True

    def joined(self, other: Range) -> Range:
        """The range of both."""
        rows = self.rows and other.rows and self.shape == other.shape
        return Range(min(self.low, other.low), max(self.high, other.high), self.shape, rows)


def linear_module(module: fx.GraphModule, node: fx.Node) -> nn.Conv2d | nn.Linear | None:
    """The convolution or linear module that `node` calls, if it computes what torch's does."""
    if node.op != "call_module":
        return None
    found = module.get_submodule(str(node.target))
    for kind in (nn.Conv2d, nn.Linear):
        own = type(found).forward is kind.forward and not (
            found._forward_hooks or found._forward_pre_hooks
        )
        if isinstance(found, kind) and own and len(node.args) == 1:
            return found
    return None


class _Observer(fx.Interpreter):
    """Runs the network and notes what its linear layers take in."""

    def __init__(self, module: fx.GraphModule, images: int) -> None:
        super().__init__(module)
        self.graph_module = module
        self.images = images
        self.found: dict[str, Range] = {}

    def run_node(self, n: fx.Node) -> Any:
        if linear_module(self.graph_module, n) is not None:
            (value,) = self.fetch_args_kwargs_from_env(n)[0]
            low, high = (float(v) for v in torch.aminmax(value))
            rows = value.shape[0] == self.images
            self.found[n.name] = Range(low, high, tuple(value.shape[1:]), rows)
        return super().run_node(n)


def calibrate(module: fx.GraphModule, batches: Iterable[torch.Tensor]) -> dict[str, Range]:
    """The range of what enters each convolution and linear module, over all images.

    Args:
        module: A traced network (`LayerGraph.module`), in eval mode.
        batches: Training images as the network takes them, first dimension the batch.

    Returns:
        By the ``torch.fx`` name of the node.

    Raises:
        DataError: No images.
        PlanError: A value that is not finite.
    """
    found: dict[str, Range] = {}
    with torch.no_grad():
        for batch in batches:
            observer = _Observer(module, len(batch))
            observer.run(batch)
            for name, seen in observer.found.items():
                found[name] = found[name].joined(seen) if name in found else seen
    if not found:
        raise DataError("`batches` holds no images to calibrate on, or the network no layer")
    for name, seen in found.items():
        if not (-float("inf") < seen.low <= seen.high < float("inf")):
            raise PlanError(f"layer {name!r} takes in values that are not finite; it has no scale")
    return found
