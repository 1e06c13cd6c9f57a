"""Measure where the images of a batch and the cells of a picture lie in a boundary tensor.

Nothing is read off a shape. The batch dimension is the one that grows with the batch, and is
checked by changing one image of a batch: only that image's values may change. Cells are found by
changing stripes of a picture, rows and columns, and watching which values answer: a dimension
counts cells if its indices answer to different stripes, and a cell lies where its answer is
strongest, measured on two pictures independently so that noise is told from place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..errors import AttackError
from .layout import Place, images_first, suggested
from .positions import Grid, Seen, flat_vector, maps_of, moves, tokens

STRIPES = 32  # each way
_FINEST = 64  # for tokens of a finer grid
_DIMS_OF_MAPS = 3  # (C, h, w): marginal answers settle most of them
_MOST_CELLS = 20_000
_MOST_VALUES = 1 << 17
_LINES, _POINTS = 32, 24  # sampled to tell which dimensions count cells
_TOGETHER = 0.12  # values that lie closer together than so much, squared, lie nowhere
_EXACT = 0.3  # cells; a grid whose cells are off by no more is taken before coarser ones are tried
_STILL = 0.004  # of the farthest; indices that lie closer together than so much count no cells
_LARGEST_ANSWER = 4.0  # in units of what another picture changes; beyond it nothing is added

Run = Callable[[torch.Tensor], list[list[torch.Tensor]]]
Key = tuple[int, int]  # a cut and one of its boundary tensors


class NotFinite(AttackError):
    """A boundary tensor has values that are not finite; ``values`` holds it."""

    def __init__(self, name: str, values: torch.Tensor) -> None:
        super().__init__(f"the boundary tensor {name!r} has values that are not finite")
        self.values = values


class Mixed(AttackError):
    """Images of one batch change each other's values."""


@dataclass(frozen=True)
class Shapes:
    """A boundary tensor's name and its shapes at two batch sizes.

    Attributes:
        first, second: The shapes; equal where the graph runs at one batch size only.
        sizes: The two batch sizes.
    """

    name: str
    first: tuple[int, ...]
    second: tuple[int, ...]
    sizes: tuple[int, int]


def batch_place(shapes: Shapes) -> Place:
    """The batch dimension of a tensor of a graph that runs at any batch size.

    Raises:
        AttackError: No dimension, or more than one, grows one to one with the batch.
    """
    one, two = shapes.sizes
    first, second = shapes.first, shapes.second
    grown = [d for d in range(len(first)) if len(first) == len(second) and first[d] != second[d]]
    if len(grown) == 1:
        rows, rest = divmod(first[grown[0]], one)
        if rest == 0 and second[grown[0]] == rows * two:
            return Place(batch=grown[0], rows=rows)
    raise AttackError(
        f"the boundary tensor {shapes.name!r} has shape {first} for {one} image(s) and {second} "
        f"for {two}: not exactly one dimension grows with the batch, so no image has a part of "
        "its own; cut elsewhere"
    )


def measure(
    run: Run,
    shapes: Sequence[Sequence[Shapes]],
    images: torch.Tensor,
    *,
    fixed: int | None = None,
    batch: int = 16,
) -> list[list[Place] | AttackError]:
    """Places of every boundary tensor of several cuts, from one set of passes.

    Args:
        run: From images (N, 3, H, W) in [0, 1] to the boundary tensors of each cut.
        shapes: Of each cut's boundary tensors.
        images: At least four different ones, (n, 3, H, W) in [0, 1].
        fixed: The only batch size that `run` takes, if there is one.
        batch: Images a pass otherwise.

    Returns:
        For each cut its places, or why it has none: `Mixed` where the images of a batch change each
        other's values, else another `AttackError`.
    """
    found: list[list[Place] | AttackError] = []
    with torch.inference_mode():
        answers = _one_changed(run, images, fixed)
        for i, group in enumerate(shapes):
            try:
                found.append(
                    [_batch_of(s, fixed, [a[i][j] for a in answers]) for j, s in enumerate(group)]
                )
            except AttackError as error:
                found.append(error)
        good = {i: places for i, places in enumerate(found) if not isinstance(places, AttackError)}
        passes = _Passes(run, images[:2], fixed, batch)
        placed = _place_all(passes, good)
    return [placed.get(i, places) for i, places in enumerate(found)]


def _one_changed(
    run: Run, images: torch.Tensor, fixed: int | None
) -> list[list[list[torch.Tensor]]]:
    """What a batch of three (or the fixed number) gives, and the same with one image changed.

    First with image 0 changed, then with image 1, where there is one: a batch that is turned round
    has its middle image where it was.
    """
    count = fixed or 3
    batch = images[torch.arange(count) % (len(images) - 1)]
    answers = [run(batch)]
    for changed in range(min(2, count)):
        other = batch.clone()
        other[changed] = images[-1]
        answers.append(run(other))
    return answers


def _batch_of(shapes: Shapes, fixed: int | None, answers: list[torch.Tensor]) -> Place:
    """The batch dimension, seen to be right: only the changed image's values change."""
    for answer in answers:
        if not bool(torch.isfinite(answer).all()):
            raise NotFinite(shapes.name, answer)
    if fixed == 1:
        return Place(batch=0) if shapes.first[:1] == (1,) else Place(batch=None)
    if fixed is None:
        guesses = [batch_place(shapes)]
    else:
        sizes = enumerate(shapes.first)
        guesses = [Place(batch=d, rows=n // fixed) for d, n in sizes if n and n % fixed == 0]
    guesses += [replace(g, together=False) for g in guesses if g.rows > 1]
    for place in guesses:
        before, *after = (images_first(a, place) for a in answers)
        if all(_only(i, (a - before).abs().flatten(1).amax(1)) for i, a in enumerate(after)):
            return place
    raise Mixed(
        f"the boundary tensor {shapes.name!r} mixes the images of a batch: changing one image "
        "changes what the others give"
    )


def _only(changed: int, change: torch.Tensor) -> bool:
    """Whether no image but the changed one gives other values; one that gives the same is fine."""
    own = float(change[changed])
    others = torch.cat([change[:changed], change[changed + 1 :]])
    return float(others.max()) <= 1e-6 * own


class _Passes:
    """Two pictures and their striped copies through the head, a batch at a time."""

    def __init__(self, run: Run, bases: torch.Tensor, fixed: int | None, batch: int) -> None:
        self.run, self.bases, self.fixed = run, bases, fixed
        self.batch = fixed or batch

    def plain(self, places: Mapping[Key, Place]) -> dict[Key, torch.Tensor]:
        """What the two pictures give, one row a picture."""
        parts = [self._some(part, places) for part in self.bases.split(self.batch)]
        return {key: torch.cat([part[key] for part in parts]) for key in places}

    def striped(
        self, places: Mapping[Key, Place], count: int
    ) -> Iterator[tuple[int, int, int, dict[Key, torch.Tensor]]]:
        """(picture, axis, first stripe, values) for all stripes; axis 0 is rows of the picture."""
        noise = torch.Generator().manual_seed(0)
        for half, base in enumerate(self.bases):
            for axis in (0, 1):
                edges = np.linspace(0, base.shape[1 + axis], count + 1).round().astype(int)
                copies = []
                for start, stop in itertools.pairwise(edges.tolist()):
                    copy = base.clone()
                    part = copy.narrow(1 + axis, start, stop - start)
                    grain = torch.rand(part.shape, generator=noise).to(part.device)
                    part.copy_((part + 0.4 + 0.2 * grain) % 1.0)
                    copies.append(copy)
                for start in range(0, count, self.batch):
                    some = torch.stack(copies[start : start + self.batch])
                    yield half, axis, start, self._some(some, places)

    def _some(self, images: torch.Tensor, places: Mapping[Key, Place]) -> dict[Key, torch.Tensor]:
        """At most a batch of images; what is missing to a fixed batch size is filled up."""
        real, short = len(images), (self.fixed or 0) - len(images)
        if short > 0:
            images = torch.cat([images, images[:1].expand(short, -1, -1, -1)])
        groups = self.run(images)
        return {key: images_first(groups[key[0]][key[1]], places[key])[:real] for key in places}


class _Watched:
    """One boundary tensor under measurement: what its values answer, summed over channels."""

    def __init__(self, place: Place, base: torch.Tensor, stripes: int, every: bool) -> None:
        self.place = place
        self.whole = tuple(base.shape[1:])
        self.dims = [d for d, n in enumerate(self.whole) if n > 1]
        self.shape = tuple(self.whole[d] for d in self.dims)
        every = every or len(self.shape) != _DIMS_OF_MAPS
        self.base = base.reshape(2, *self.shape)
        # A value's answer is told in units of what another picture changes in it.
        usual = (self.base[0] - self.base[1]).abs()
        self.scale = usual + 0.1 * usual.mean() + 1e-30
        self.views = self._views(every)
        self.sums = {
            view: np.zeros((2, 2, math.prod(self.shape[d] for d in view), stripes), np.float32)
            for view in self.views
        }
        self.lines = self._sampled() if every and self.shape else None
        if self.lines is not None:
            self.points = np.zeros((2, 2, *self.lines.shape, stripes), np.float32)

    def _views(self, every: bool) -> list[tuple[int, ...]]:
        count = len(self.shape)
        if count == 1:
            return [(0,)] if self.shape[0] <= _MOST_VALUES else []
        singles: list[tuple[int, ...]] = [(d,) for d in range(count)]
        if not every:
            return singles
        larger = [
            view
            for size in range(2, count + 1)
            for view in itertools.combinations(range(count), size)
            if math.prod(self.shape[d] for d in view) <= _MOST_CELLS
        ]
        return singles + larger

    def _sampled(self) -> np.ndarray:
        """Flat numbers of values on lines along each dimension, (dims, lines, points)."""
        rng = np.random.default_rng(0)
        picked = []
        for d, size in enumerate(self.shape):
            start = np.stack([rng.integers(0, n, _LINES) for n in self.shape])
            points = np.linspace(0, size - 1, _POINTS).round().astype(int)
            index = np.repeat(start[:, :, None], _POINTS, 2)
            index[d] = points
            picked.append(np.ravel_multi_index(tuple(index), self.shape))
        return np.stack(picked)

    def take(self, half: int, axis: int, stripe: int, value: torch.Tensor) -> None:
        """Add the answer to one stripe."""
        change = (value.reshape(self.shape) - self.base[half]).abs() / self.scale
        answer = change.clamp_(max=_LARGEST_ANSWER).square_()
        for view in self.views:
            others = [d for d in range(len(self.shape)) if d not in view]
            summed = answer.sum(others) if others else answer
            self.sums[view][half, axis, :, stripe] = summed.flatten().cpu().numpy()
        if self.lines is not None:
            flat = answer.flatten()[torch.from_numpy(self.lines).to(answer.device)]
            self.points[half, axis, ..., stripe] = flat.cpu().numpy()


def _place_all(passes: _Passes, found: Mapping[int, list[Place]]) -> dict[int, list[Place]]:
    """Cells of all tensors: plain maps from marginal answers, what is left from all of them."""
    places = {(i, j): place for i, group in found.items() for j, place in enumerate(group)}
    if not places:
        return {}
    watched = _watch(passes, places, min(STRIPES, passes.bases.shape[-1]), every=False)
    done = {key: place for key, w in watched.items() if (place := _place(w)) is not None}
    left = {key: place for key, place in places.items() if key not in done}
    if left:
        finest = max(_side(watched[key].shape) for key in left)
        stripes = min(max(STRIPES, finest), _FINEST, passes.bases.shape[-1])
        for key, w in _watch(passes, left, stripes, every=True).items():
            done[key] = _as_cells(w)
    return {i: [done[i, j] for j in range(len(group))] for i, group in found.items()}


def _side(shape: Sequence[int]) -> int:
    """Side of the finest square grid that the values could make, channels left out."""
    return math.isqrt(math.prod(shape) // min(shape)) if len(shape) > 1 else 0


def _watch(
    passes: _Passes, places: Mapping[Key, Place], stripes: int, *, every: bool
) -> dict[Key, _Watched]:
    watched = {
        key: _Watched(places[key], base, stripes, every)
        for key, base in passes.plain(places).items()
    }
    for half, axis, start, values in passes.striped(places, stripes):
        for key, rows in values.items():
            for stripe, value in enumerate(rows, start):
                watched[key].take(half, axis, stripe, value)
    return watched


def _place(watched: _Watched) -> Place | None:
    """The place of a tensor, or None where more must be watched to tell."""
    if not watched.shape:
        return replace(watched.place, why="one value")
    place = _as_map(watched)
    if place is None and watched.lines is not None:
        place = _as_cells(watched)
    return place


def _as_map(watched: _Watched) -> Place | None:
    """A tensor with a dimension for rows and one for columns of the picture."""
    shape, dims = watched.shape, watched.dims
    if len(shape) not in (2, _DIMS_OF_MAPS):
        return None
    pair = maps_of(shape, [watched.sums[d,] for d in range(len(shape))])
    if pair is None:
        return None
    rows, columns = pair
    return replace(
        watched.place,
        cells=(dims[rows], dims[columns]),
        grid=(shape[rows], shape[columns]),
        why=f"rows are dimension {dims[rows]}, columns {dims[columns]} of an image's part",
    )


def _as_cells(watched: _Watched) -> Place:
    """Any other tensor: tokens in any order, windows, a flattened map, a vector."""
    place, dims, shape = watched.place, watched.dims, watched.shape
    if watched.lines is None or not watched.views:
        return replace(place, measured=False, why="too many values to be watched one by one")
    apart = [moves(watched.points[:, :, d]) for d in range(len(shape))]
    if len(shape) == 1:
        return _as_vector(watched, apart[0])
    found: list[tuple[float, Place]] = []
    for view in _likely_cells(apart):
        grid = tokens(Seen.of(watched.sums[view])) if view in watched.sums else None
        if grid is not None:
            found.append((grid.error, _of_grid(place, tuple(dims[d] for d in view), grid)))
            if grid.error <= _EXACT:
                break
    if found:
        return min(found, key=lambda f: f[0])[1]
    if not any(answers.any() for answers in watched.sums.values()):
        return replace(suggested(watched.whole, place), why="no value depends on the picture")
    why = "no dimension counts cells of the picture"
    return replace(suggested(watched.whole, place), measured=False, why=why)


def _of_grid(place: Place, cells: tuple[int, ...], grid: Grid) -> Place:
    what = "in raster order" if grid.raster else "in an order of their own"
    nowhere = f", {len(grid.special)} that lie nowhere" if grid.special else ""
    return replace(
        place,
        cells=cells,
        grid=(grid.height, grid.width),
        order=grid.order,
        special=grid.special,
        why=f"{grid.height}x{grid.width} cells {what}{nowhere}",
    )


def _likely_cells(apart: Sequence[float]) -> list[tuple[int, ...]]:
    """Which dimensions may count cells together, by how far apart the indices of each lie."""
    by_move = sorted(range(len(apart)), key=lambda d: apart[d])
    moving = [d for d in by_move if apart[d] > _STILL * max(apart)]
    likely = [tuple(sorted(moving[i:])) for i in range(len(moving))]
    likely += [tuple(sorted(by_move[i:])) for i in range(len(by_move))]
    return list(dict.fromkeys(likely))


def _as_vector(watched: _Watched, apart: float) -> Place:
    """One dimension: a flattened map, or values that lie nowhere."""
    place = watched.place
    found = flat_vector(Seen.of(watched.sums[0,])) if watched.views else None
    if found is not None:
        (channels, height, width), first = found
        return replace(
            place,
            flat=(channels, height, width, first),
            grid=(height, width),
            why=f"a flattened map of {channels}x{height}x{width}",
        )
    if apart > _TOGETHER:
        why = "values lie at places of the picture, but not as a flattened map would have them"
        return replace(place, measured=False, why=why)
    return replace(place, why="a vector: no value lies at one place of the picture")
