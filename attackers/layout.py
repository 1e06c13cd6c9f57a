"""Boundary tensors of any shape as one feature map (N, C, h, w), which is what attackers read.

Where the images of a batch and the cells of the picture lie in a tensor is measured, in
`placing.py`; a `Place` records what was found, and `to_map` follows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

REPEATED = 1024  # special cells with at most so many values together stand at every grid cell


@dataclass(frozen=True)
class Place:
    """Where images and cells lie in one boundary tensor.

    Dimensions in `cells` count those of one image's part, which has no batch dimension; where an
    image has several rows of the batch dimension, those rows come first.

    Attributes:
        batch: The dimension that grows with the batch; None where the tensor is one image's.
        rows: How many indices of that dimension one image has.
        together: Whether those stand side by side (image by image) or apart (row by row).
        cells: Dimensions that together count the cells, in the order in which they count them; the
            others are channels. Empty for a vector, whose values lie nowhere.
        grid: Height and width of the map in cells.
        order: For each cell of the grid, row by row, its number among the tensor's cells; None
            where they are in that order already.
        special: Numbers of the cells that lie nowhere in the picture (class tokens, registers).
        flat: For a flattened map its channels, height and width and whether the channels stand
            first, as in (C, h, w), or last.
        measured: Whether the places of the cells were found by measurement. False: `grid` is what
            the shape suggests, and an attacker that relies on it proves nothing by failing.
        why: What was found, in one phrase.
    """

    batch: int | None = 0
    rows: int = 1
    together: bool = True
    cells: tuple[int, ...] = ()
    grid: tuple[int, int] = (1, 1)
    order: tuple[int, ...] | None = None
    special: tuple[int, ...] = ()
    flat: tuple[int, int, int, bool] | None = None
    measured: bool = True
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, which `of_dict` reads back."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def of_dict(cls, values: dict[str, Any]) -> Place:
        """From plain values; lists become tuples."""
        known: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**known)


def to_map(boundary: Sequence[torch.Tensor], places: Sequence[Place]) -> torch.Tensor:
    """Join the boundary tensors of one cut into a map of shape (N, C, h, w), float32.

    Complex values become two channels. Cells that lie nowhere are repeated over the grid as
    channels, or spread over it where that would be more than `REPEATED` channels. Several tensors
    are scaled to the largest of their maps (nearest neighbour) and stacked as channels. No value is
    lost.

    Args:
        boundary: The tensors that cross at a cut.
        places: Where images and cells lie, one for each tensor.
    """
    maps = [_one(t, p) for t, p in zip(boundary, places, strict=True)]
    height = max(m.shape[2] for m in maps)
    width = max(m.shape[3] for m in maps)
    scaled = [
        m
        if m.shape[2:] == (height, width)
        else torch.nn.functional.interpolate(m, (height, width), mode="nearest")
        for m in maps
    ]
    return scaled[0] if len(scaled) == 1 else torch.cat(scaled, 1)


def images_first(tensor: torch.Tensor, place: Place) -> torch.Tensor:
    """One row an image, float32: (N, d1, ..., dm), whatever the place of the batch."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    tensor = tensor.float()
    if place.batch is None:
        return tensor[None]
    tensor = tensor.movedim(place.batch, 0)
    if place.rows == 1:
        return tensor
    count = tensor.shape[0] // place.rows
    if place.together:
        return tensor.reshape(count, place.rows, *tensor.shape[1:])
    return tensor.reshape(place.rows, count, *tensor.shape[1:]).transpose(0, 1)


def suggested(shape: Sequence[int], batch: Place) -> Place:
    """What the shape of one image's part suggests where nothing can be measured.

    Three dimensions are (C, h, w), or (h, w, C) where only that makes the map square; two are
    tokens (T, C) of a square picture, the first ones special; all else is a vector.
    """
    if len(shape) == 3:
        a, b, c = shape
        last = a == b and b != c
        return replace(batch, cells=(0, 1) if last else (1, 2), grid=(a, b) if last else (b, c))
    if len(shape) == 2:
        for special in range(9):
            side = math.isqrt(max(0, shape[0] - special))
            if side > 1 and side * side == shape[0] - special:
                order = tuple(range(special, shape[0])) if special else None
                first = tuple(range(special))
                return replace(batch, cells=(0,), grid=(side, side), order=order, special=first)
    return batch


def _one(tensor: torch.Tensor, place: Place) -> torch.Tensor:
    tensor = images_first(tensor, place)
    count = tensor.shape[0]
    if place.flat is not None:
        deep, height, width, first = place.flat
        if first:
            return tensor.reshape(count, deep, height, width)
        return tensor.reshape(count, height, width, deep).permute(0, 3, 1, 2)
    if not place.cells:
        return tensor.reshape(count, -1, 1, 1)
    cells = [1 + d for d in place.cells]
    channels = [d for d in range(1, tensor.ndim) if d not in cells]
    if place.order is None and not place.special and len(cells) == 2:
        # Plain maps, the usual case: no copy where the channels stand first.
        tensor = tensor.permute(0, *channels, *cells)
        return tensor.reshape(count, -1, *place.grid)
    tokens = tensor.permute(0, *cells, *channels).flatten(1, len(cells))
    tokens = tokens.reshape(count, tokens.shape[1], -1)
    taken = tokens if place.order is None else tokens[:, list(place.order)]
    grid = taken.transpose(1, 2).reshape(count, -1, *place.grid)
    if not place.special:
        return grid
    return torch.cat([grid, _everywhere(tokens[:, list(place.special)], place.grid)], 1)


def _everywhere(special: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Values that lie nowhere, as channels of the grid."""
    values = special.flatten(1)
    if values.shape[1] <= REPEATED:
        return values[:, :, None, None].expand(-1, -1, *grid)
    cells = grid[0] * grid[1]
    deep = math.ceil(values.shape[1] / cells)
    padded = torch.nn.functional.pad(values, (0, deep * cells - values.shape[1]))
    return padded.reshape(len(values), deep, *grid)
