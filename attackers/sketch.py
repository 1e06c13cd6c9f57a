"""The linear attacker on a sketch of the map: few channels, many cells around."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from .base import Context, as_features
from .linear import Linear
from .pairs import Pairs
from .rows import Rows

_CELLS = 6000  # that the principal components are taken from


class _Projected(Rows):
    """Rows of maps with fewer channels, projected as they are read."""

    def __init__(self, rows: Rows, basis: np.ndarray) -> None:
        self._rows, self._basis = rows, basis
        self.shape = (rows.shape[0], basis.shape[1], *rows.shape[2:])

    def take(self, index: np.ndarray | range) -> np.ndarray:
        """The given rows, as float32."""
        return _project(self._rows.take(index), self._basis)


@dataclass(repr=False)
class Sketch(Linear):
    """Ridge regression from the k x k cells around, of the map's principal components alone.

    A wide map leaves the linear attacker a single cell to look at, and then it sees less than at
    the narrow map before it. The neighbours say more than the components that vary least, so that
    this one is cheaper and, on wide maps, stronger: it goes over the cuts that nobody sampled.

    Args:
        channels: Components kept, at most.
    """

    name: ClassVar[str] = "sketch"

    channels: int = 72
    _basis: np.ndarray | None = field(default=None, init=False)

    def fit(self, pairs: Pairs, context: Context) -> None:
        """Find the components on training maps, then solve as the linear attacker does."""
        rows = pairs.features
        self._basis = None
        if rows.shape[1] > self.channels:
            self._basis = self._components(rows, np.random.default_rng(context.seed))
            pairs = pairs.with_features(_Projected(rows, self._basis))
        super().fit(pairs, context)

    def _components(self, rows: Rows, rng: np.random.Generator) -> np.ndarray:
        """Orthonormal directions of most variance over channels, (C, channels)."""
        channels, cells = rows.shape[1], rows.shape[2] * rows.shape[3]
        few = min(len(rows), max(32, _CELLS // cells))
        maps = rows.take(range(few)).reshape(few, channels, cells)
        each = max(1, min(cells, _CELLS // few))
        drawn = maps[:, :, rng.permutation(cells)[:each]]
        flat = torch.from_numpy(drawn.transpose(0, 2, 1).reshape(-1, channels)).float()
        flat = flat - flat.mean(0)
        if len(flat) < channels:  # fewer cells than channels: the same directions by the dual
            values, vectors = torch.linalg.eigh(flat @ flat.T)
            kept = flat.T @ vectors[:, -self.channels :]
            found = kept / values[-self.channels :].clamp_min(1e-6).sqrt()
        else:
            found = torch.linalg.eigh(flat.T @ flat)[1][:, -self.channels :]
        return np.asarray(found.numpy())

    def reconstruct(self, features: np.ndarray) -> torch.Tensor:
        """Project, then apply the regression."""
        if self._basis is not None:
            features = _project(features, self._basis)
        return super().reconstruct(features)


def _project(maps: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Maps (N, C, h, w) on the columns of (C, c)."""
    found = torch.einsum("nchw,cd->ndhw", as_features(maps), torch.from_numpy(basis))
    return np.asarray(found.contiguous().numpy())
