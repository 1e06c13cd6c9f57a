"""From answers to stripes of a picture to the place of each cell: pure arithmetic, no network.

Answers have shape (2, 2, cells, stripes): of two pictures, to rows and to columns of stripes. What
two pictures agree on is place; what they do not agree on is noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

MOST_SPECIAL = 16
_CLEAR = 0.75  # cells; a cell is in its place where it is seen at most so far from it, on average
_FEWEST = 9  # fewer cells make a grid of any order by chance
_MORE, _MORE_TOGETHER = 1.25, 1.5  # how much clearer a dimension counts along than across
_LOOSE = 0.2  # of the picture; further off its line no dimension counts rows or columns
_STRAIGHT = 16  # indices of a fine map may be off their line by one in so many


@dataclass(frozen=True)
class Seen:
    """Where cells were seen.

    Attributes:
        at: Shape (2, 2, cells), of each picture, along rows and columns, in [0, 1].
        clear: Shape (2, cells), rows and columns: how much more than usual a cell answers to the
            stripe that it answers most to; 0 for no more.
        alive: Shape (cells,): whether it answers at all.
    """

    at: np.ndarray
    clear: np.ndarray
    alive: np.ndarray

    @classmethod
    def of(cls, answers: np.ndarray) -> Seen:
        """Centres of each cell's peak above what cells usually answer to a stripe."""
        stripes = answers.shape[-1]
        total = answers.sum(-1, keepdims=True, dtype=np.float64)
        alive = (total > 0).all((0, 1, 3))
        share = answers / np.maximum(total, 1e-30)
        usual = (share[:, :, alive] if alive.any() else share).mean(2, keepdims=True)
        above = share / np.maximum(usual, 1e-9) - 1.0
        peak = above.max(-1, keepdims=True)
        weight = np.maximum(above - 0.5 * np.maximum(peak, 1e-9), 0.0) ** 2
        places = (np.arange(stripes) + 0.5) / stripes
        at = (weight * places).sum(-1) / np.maximum(weight.sum(-1), 1e-30)
        clear = np.where(alive, peak[..., 0].min(0), 0.0)
        return cls(at, clear, alive)

    def part(self, cells: np.ndarray) -> Seen:
        """Some of the cells."""
        return Seen(self.at[:, :, cells], self.clear[:, cells], self.alive[cells])


@dataclass(frozen=True)
class Grid:
    """Cells laid out.

    Attributes:
        height, width: In cells.
        order: Numbers of the cells, row by row; None where they are in that order and none is
            special.
        special: Numbers of the cells that lie nowhere.
        error: How far cells were seen from their places, root mean square, in cells.
        raster: Whether the cells came in raster order.
    """

    height: int
    width: int
    order: tuple[int, ...] | None
    special: tuple[int, ...]
    error: float
    raster: bool


def moves(answers: np.ndarray) -> float:
    """How far indices of a line of cells lie apart, as far as both pictures agree.

    Args:
        answers: Shape (2, 2, lines, points, stripes); points of a line differ in one index only.

    Returns:
        Covariance of the two pictures' places along the lines, both axes added, in [0, 0.17].
    """
    two, axes, lines, points, stripes = answers.shape
    seen = Seen.of(answers.reshape(two, axes, lines * points, stripes))
    at = seen.at.reshape(two, axes, lines, points)
    alive = seen.alive.reshape(lines, points)
    total, count = 0.0, 0
    for line in range(lines):
        here = at[:, :, line, alive[line]]
        if here.shape[-1] > 1:
            away = here - here.mean(-1, keepdims=True)
            total += float((away[0] * away[1]).mean(-1).sum())
            count += 1
    return total / count if count else 0.0


def maps_of(sizes: Sequence[int], marginal: Sequence[np.ndarray]) -> tuple[int, int] | None:
    """Which two dimensions count rows and columns, told from their marginal answers alone.

    Where the indices of one dimension answer to rows of the picture in order and not to columns,
    and those of another to columns and not to rows, every element lies where the two cross.

    Args:
        sizes: Of the dimensions.
        marginal: For each dimension the answers summed over the others, (2, 2, size, stripes).
    """
    seen = [Seen.of(m) for m in marginal]
    for rows, columns in _pairs(len(sizes)):
        along = _counts(seen[rows], 0), _counts(seen[columns], 1)
        if min(along) > _MORE and along[0] * along[1] > _MORE_TOGETHER:
            return rows, columns
    return None


def _pairs(count: int) -> Iterator[tuple[int, int]]:
    """Pairs of dimensions, the usual ones first: the last two, then the first two."""
    usual = [(count - 2, count - 1), (0, 1), (count - 1, count - 2), (1, 0)]
    others = [(a, b) for a in range(count) for b in range(count) if a != b]
    yield from dict.fromkeys([p for p in usual if min(p) >= 0 and p[0] != p[1]] + others)


def _counts(seen: Seen, axis: int) -> float:
    """How much clearer indices lie one after the other along an axis than across it; 0 if not."""
    size = seen.at.shape[-1]
    index = (np.arange(size) + 0.5) / size
    if size < 2 or not seen.alive.all():
        return 0.0
    for half in (0, 1):
        slope, error = _line(index, seen.at[half, axis])
        if slope < 0.3 or error > _LOOSE or error * size > max(1.4, size / _STRAIGHT):
            return 0.0
    along, across = (float(np.median(seen.clear[a])) for a in (axis, 1 - axis))
    return along / max(across, 1e-9)


def _line(index: np.ndarray, at: np.ndarray) -> tuple[float, float]:
    """Slope of `at` over `index`, and the root mean square of what is off the line, over slope."""
    centred = index - index.mean()
    spread = float((centred**2).mean())
    if spread == 0.0:
        return 1.0, 0.0
    slope = float((centred * (at - at.mean())).mean()) / spread
    off = at - at.mean() - slope * centred
    return slope, float(np.sqrt((off**2).mean())) / max(abs(slope), 1e-9)


def tokens(seen: Seen) -> Grid | None:
    """Lay cells out as a grid, those that lie nowhere apart; None where it cannot be told.

    Raster order is taken where what was seen bears it out as well as the order of what was seen
    itself; else the latter, if it is clear.
    """
    count = len(seen.alive)
    rows, columns = np.median(seen.clear, 1)
    if count < _FEWEST or min(rows, columns) < 0.4 * max(rows, columns):
        return None
    unclear = _unclear(seen)
    best: tuple[float, Grid] | None = None
    for special, height, width in _grids(count):
        grid = _laid_out(seen, special, height, width)
        if grid is None:
            continue
        # Squares are usual, and a cell that lies somewhere should not be left out.
        unlikely = 0.15 * (height != width) + 0.1 * max(0, special - unclear)
        if best is None or grid.error + unlikely < best[0]:
            best = grid.error + unlikely, grid
    return None if best is None else best[1]


def _laid_out(seen: Seen, special: int, height: int, width: int) -> Grid | None:
    """The cells in one grid, the `special` least clear ones apart; None where they do not fit."""
    weakest = np.sort(np.argsort(seen.clear.sum(0), kind="stable")[:special])
    rest = np.setdiff1d(np.arange(len(seen.alive)), weakest)
    here = seen.part(rest)
    if not here.alive.all():
        return None
    error = max(
        _error(here.at[1 - half], _sorted(here.at[half], height, width), height, width)
        for half in (0, 1)
    )
    raster = max(_error(here.at[half], np.arange(len(rest)), height, width) for half in (0, 1))
    nowhere = tuple(weakest.tolist())
    if raster <= max(1.15 * error + 0.1, 0.25) and raster <= max(1.0, 0.15 * height):
        in_order = tuple(rest.tolist()) if special else None
        return Grid(height, width, in_order, nowhere, raster, True)
    if error <= _CLEAR:
        order = rest[_sorted(here.at.mean(0), height, width)]
        return Grid(height, width, tuple(order.tolist()), nowhere, error, False)
    return None


def _unclear(seen: Seen) -> int:
    """How many cells answer to no place in particular."""
    clear = seen.clear.sum(0)
    return int((clear < 0.35 * np.median(clear)).sum())


def _grids(count: int) -> Iterator[tuple[int, int, int]]:
    """(special, height, width) of grids that `count` cells can make, at most four times as long."""
    for special in range(min(MOST_SPECIAL, count // 4) + 1):
        cells = count - special
        for height in range(2, cells // 2 + 1):
            width, rest = divmod(cells, height)
            if rest == 0 and 4 * height >= width and 4 * width >= height:
                yield special, height, width


def _sorted(at: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cells in raster order of where they were seen, (2, cells)."""
    by_row = np.argsort(at[0], kind="stable").reshape(height, width)
    return np.concatenate([row[np.argsort(at[1][row], kind="stable")] for row in by_row])


def _error(at: np.ndarray, order: np.ndarray, height: int, width: int) -> float:
    """How far cells were seen from their place in the grid: root mean square, in cells.

    The picture's borders draw what is seen towards the middle: a straight line is fitted first.
    """
    rows, columns = np.divmod(np.arange(height * width), width)
    worst = 0.0
    for axis, (place, size) in enumerate(((rows, height), (columns, width))):
        slope, off = _line((place + 0.5) / size, at[axis][order])
        if slope < 0.25:
            return np.inf
        worst = max(worst, off * size)
    return worst


def flat_vector(seen: Seen) -> tuple[tuple[int, int, int], bool] | None:
    """A flattened map: ((C, h, w), whether channels stand first), or None where none fits."""
    count = len(seen.alive)
    index = np.flatnonzero(seen.alive)
    if len(index) < max(16, count // 8):
        return None
    best: tuple[float, tuple[int, int, int], bool] | None = None
    for side in range(2, 65):
        channels, rest = divmod(count, side * side)
        if rest:
            continue
        for first in (True, False):
            cell = index % (side * side) if first else index // channels
            rows, columns = np.divmod(cell, side)
            errors = []
            for half in (0, 1):
                for axis, place in ((0, rows), (1, columns)):
                    slope, off = _line((place + 0.5) / side, seen.at[half, axis, index])
                    errors.append(off * side if slope > 0.25 else np.inf)
            error = max(errors)
            # Of two that fit, the finer one says more.
            if error <= _CLEAR and (best is None or side > best[1][1]):
                best = (error, (channels, side, side), first)
    return None if best is None else (best[1], best[2])
