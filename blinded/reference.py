"""What a layer gives, in plain 64-bit integers: the truth that everything else is compared with."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .layers import Layer


def integers(layer: Layer, values: torch.Tensor) -> torch.Tensor:
    """The layer's output for `values` (batch, \\*layer.shape) of any integer dtype, as int64.

    Shares nothing with `exact`: torch's own integer convolution and product, which never wrap
    where magnitudes of sums stay below 2^63.
    """
    x, w = values.to(torch.int64), layer.weight.to(torch.int64)
    if layer.window is None:
        return x @ w.T
    window = layer.window
    return F.conv2d(
        F.pad(x, window.padding), w, None, window.stride, 0, window.dilation, window.groups
    )
