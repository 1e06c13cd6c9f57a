"""Rows of maps or images that may lie on disk and are copied into memory a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class OnDisk(NamedTuple):
    """Rows in a raw file; whatever `pin` is, it lives as long as they do, and so does the file."""

    path: Path
    shape: tuple[int, ...]
    dtype: str
    pin: object = None


class Rows:
    """An indexable (N, ...) array in one or more pieces, each in memory or in a raw file.

    A file is mapped only while rows are copied out of it, so that resident memory stays at what a
    batch needs.
    """

    def __init__(
        self, pieces: Sequence[np.ndarray | OnDisk | tuple[Path, tuple[int, ...], str]]
    ) -> None:
        self._pieces = [p if isinstance(p, np.ndarray) else OnDisk(*p) for p in pieces]
        shapes = [p.shape for p in self._pieces]
        self._starts = np.cumsum([0, *(s[0] for s in shapes)])
        self.shape: tuple[int, ...] = (int(self._starts[-1]), *shapes[0][1:])

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, index: np.ndarray | range) -> np.ndarray:
        """Copy the given rows, in the given order, into a new array."""
        index = np.asarray(index)
        out: np.ndarray | None = None
        for piece, start, stop in zip(
            self._pieces, self._starts[:-1], self._starts[1:], strict=True
        ):
            here = np.flatnonzero((index >= start) & (index < stop))
            if not len(here):
                continue
            source = piece if isinstance(piece, np.ndarray) else _mapped(piece)
            if out is None:
                out = np.empty((len(index), *self.shape[1:]), source.dtype)
            out[here] = source[index[here] - start]
        if out is None:
            out = np.empty((0, *self.shape[1:]), np.float16)
        return out

    def first(self, count: int) -> Rows:
        """The first `count` of these rows."""
        pieces: list[np.ndarray | OnDisk] = []
        for piece, start in zip(self._pieces, self._starts[:-1], strict=True):
            left = count - int(start)
            if left <= 0:
                break
            if isinstance(piece, np.ndarray):
                pieces.append(piece[:left])
            else:
                shape = (min(left, piece.shape[0]), *piece.shape[1:])
                pieces.append(piece._replace(shape=shape))
        return Rows(pieces)

    def joined(self, other: Rows) -> Rows:
        """These rows followed by those of `other`."""
        return Rows([*self._pieces, *other._pieces])


def _mapped(piece: OnDisk) -> np.ndarray:
    return np.memmap(piece.path, dtype=piece.dtype, mode="r", shape=piece.shape)


def as_rows(array: Rows | np.ndarray) -> Rows:
    """Wrap an array; leave rows as they are."""
    return array if isinstance(array, Rows) else Rows([array])
