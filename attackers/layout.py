"""Boundary tensors of any shape as one feature map (N, C, h, w), which is what attackers read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def to_map(boundary: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join the boundary tensors of one cut into a map of shape (N, C, h, w).

    Four dimensions are taken as (N, C, h, w), or as (N, h, w, C) where only that makes the map
    square. Three are tokens (N, T, C), laid out as a square; a leading class token is repeated over
    the square as channels of its own. Everything else becomes channels of a 1x1 map. Several
    tensors are scaled to the largest of their maps (nearest neighbour) and stacked as channels.
    No value is lost.
    """
    maps = [_one(t) for t in boundary]
    height = max(m.shape[2] for m in maps)
    width = max(m.shape[3] for m in maps)
    scaled = [
        m
        if m.shape[2:] == (height, width)
        else torch.nn.functional.interpolate(m, (height, width), mode="nearest")
        for m in maps
    ]
    return scaled[0] if len(scaled) == 1 else torch.cat(scaled, 1)


def _one(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.float()
    if tensor.ndim == 4:
        _, a, b, c = tensor.shape
        if a == b and b != c:
            return tensor.permute(0, 3, 1, 2)
        return tensor
    if tensor.ndim == 3:
        return _tokens(tensor)
    return tensor.reshape(tensor.shape[0], -1, 1, 1)


def _tokens(tensor: torch.Tensor) -> torch.Tensor:
    n, count, channels = tensor.shape
    side = math.isqrt(count)
    if side * side == count:
        return tensor.transpose(1, 2).reshape(n, channels, side, side)
    side = math.isqrt(count - 1)
    if side * side == count - 1:
        grid = tensor[:, 1:].transpose(1, 2).reshape(n, channels, side, side)
        special = tensor[:, 0, :, None, None].expand(-1, -1, side, side)
        return torch.cat([grid, special], 1)
    return tensor.reshape(n, -1, 1, 1)
