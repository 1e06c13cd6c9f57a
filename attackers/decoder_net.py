"""The decoder's network: residual blocks on the map's own grid, then up to the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

FINER = 1.25  # a map up to so much finer than half the picture's side keeps its own grid
CROWDED = 20  # cells a side from which on the first width shrinks, so that steps stay affordable
NARROWING = 0.6  # of the width, at each step up
PIXELS_A_CELL = 7.5  # of a side that is too small for what the map's cells tell apart
SMALLEST = 90  # pixels; no picture is rebuilt at a smaller side to save time
LIMIT = 30.0  # standard deviations beyond which a normalised feature is clamped
_VECTOR = (4, 4)  # grid that a map without places is spread over


def own_side(side: int, cells: tuple[int, int]) -> int:
    """The side in pixels at which a map is inverted: that of the picture, or a half of it.

    Halved while the map still has few cells for it. A 7x7 map does not say what 224 pixels show and
    112 do not, and the smaller picture costs a quarter.

    >>> own_side(224, (7, 7)), own_side(224, (28, 28)), own_side(96, (7, 7))
    (112, 224, 96)
    """
    while side // 2 >= max(SMALLEST, PIXELS_A_CELL * max(cells)):
        side //= 2
    return side


@dataclass(frozen=True)
class Layout:
    """What a network is to be built for.

    Attributes:
        channels: Channels of the map.
        cells: Rows and columns of the map.
        side: Side of the picture, pixels.
        width: Channels at the map's resolution, where that is not crowded.
        blocks: Residual blocks at the map's resolution.
        narrowest: Fewest channels.
    """

    channels: int
    cells: tuple[int, int]
    side: int
    width: int
    blocks: int
    narrowest: int

    @property
    def is_vector(self) -> bool:
        """Whether the map has no places in it."""
        return min(self.cells) == 1

    @property
    def fold(self) -> tuple[int, int]:
        """How many rows and columns of a map finer than half the picture become channels."""
        most = FINER * math.ceil(self.side / 2)
        rows, columns = (max(1, math.ceil(n / most)) for n in self.cells)
        return rows, columns

    def grids(self) -> list[tuple[int, int]]:
        """Rows and columns at each step: the map's own, doubled, and last half the picture's."""
        half = math.ceil(self.side / 2)
        if self.is_vector:
            rows, columns = (min(n, half) for n in _VECTOR)
        else:
            rows, columns = (math.ceil(n / f) for n, f in zip(self.cells, self.fold, strict=True))
        grids = [(rows, columns)]
        while 2 * max(rows, columns) < 0.8 * half:
            rows, columns = 2 * rows, 2 * columns
            grids.append((rows, columns))
        if min(rows, columns) < half:
            grids.append((max(rows, half), max(columns, half)))
        return grids

    def widths(self) -> list[int]:
        """Channels at each of `grids`."""
        grids = self.grids()
        width = self.width * min(1.0, CROWDED / max(grids[0]))
        return [max(self.narrowest, 8 * round(width * NARROWING**i / 8)) for i in range(len(grids))]

    @property
    def largest_activation(self) -> int:
        """Numbers in the largest activation of one image."""
        sizes = (h * w * c for (h, w), c in zip(self.grids(), self.widths(), strict=True))
        return max(self.channels * self.cells[0] * self.cells[1], *sizes)


class Block(nn.Module):
    """Residual block that is the identity at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.change = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.SiLU(),
            last,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the change to (N, C, h, w)."""
        changed: torch.Tensor = x + self.change(x)
        return changed


class InverseNet(nn.Module):
    """Map (N, C, h, w) and a first picture (N, 3, R, R) to a picture (N, 3, R, R).

    R is the layout's side while it learns, and may be larger when it answers: the change is then
    scaled up.

    Full resolution is dear and the last steps are local: the blocks end at half of the picture's
    side, and sub-pixels (Shi et al., 2016) make the rest. Every step but the first has whatever
    size the next one needs, so no cell of the map is averaged away.
    """

    def __init__(self, layout: Layout, sees_first: bool) -> None:
        super().__init__()
        self.fold = layout.fold
        self.grids, widths = layout.grids(), layout.widths()
        first = widths[0]
        inside = layout.channels * math.prod(self.fold)
        self.spread = (
            nn.Linear(layout.channels, first * math.prod(self.grids[0]))
            if layout.is_vector
            else None
        )
        self.stem = nn.Sequential(
            nn.Conv2d(first if self.spread else inside, first, 1),
            nn.Conv2d(first, first, 3, padding=1),
        )
        self.place = nn.Parameter(torch.zeros(1, first, *self.grids[0]))
        self.body = nn.Sequential(*(Block(first) for _ in range(layout.blocks)))
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), Block(b)) for a, b in pairwise(widths)
        )
        self.join = nn.Conv2d(12, widths[-1], 3, padding=1) if sees_first else None
        self.finish = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.SiLU())
        self.last = nn.Conv2d(widths[-1], 12, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, maps: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Change the first picture by what the map says."""
        x = self.stem(self._gridded(maps.clamp(-LIMIT, LIMIT))) + self.place
        x = self.body(x)
        for grid, up in zip(self.grids[1:], self.ups, strict=True):
            x = up(F.interpolate(x, grid, mode="nearest"))
        if self.join is not None:
            x = x + self.join(self._halved(first))
        change = F.pixel_shuffle(self.last(self.finish(x)), 2).float()
        rebuilt: torch.Tensor = first + _sized(change, first.shape[-1])
        return rebuilt

    def _gridded(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps on the first grid: vectors spread, cells too fine folded into channels."""
        if self.spread is not None:
            spread: torch.Tensor = self.spread(maps.mean((2, 3)))
            return spread.view(len(maps), -1, *self.grids[0])
        rows, columns = self.fold
        if rows > 1 or columns > 1:
            n, c, h, w = maps.shape
            maps = F.pad(maps, (0, -w % columns, 0, -h % rows))
            (h, w) = self.grids[0]
            maps = maps.view(n, c, h, rows, w, columns).permute(0, 1, 3, 5, 2, 4)
            maps = maps.reshape(n, c * rows * columns, h, w)
        return maps.contiguous(memory_format=torch.channels_last)

    def _halved(self, first: torch.Tensor) -> torch.Tensor:
        """The first picture at twice the last grid, its sub-pixels as channels."""
        rows, columns = self.grids[-1]
        picture = F.interpolate(
            first, (2 * rows, 2 * columns), mode="bilinear", align_corners=False
        )
        return F.pixel_unshuffle(picture - 0.5, 2)


def _sized(picture: torch.Tensor, side: int) -> torch.Tensor:
    if picture.shape[2:] == (side, side):
        return picture
    return F.interpolate(
        picture, (side, side), mode="bilinear", antialias=True, align_corners=False
    )
