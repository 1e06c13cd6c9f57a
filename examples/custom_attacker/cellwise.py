"""An attacker that takes every cell of a feature map for a linear picture of the patch above it.

pip install ./examples/custom_attacker
partopt attack --model mobilenet_v2 --cut features.6.conv.3 --attackers linear,cellwise
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from partopt.attackers.base import Attacker, Context, as_features, as_images, checked
from partopt.attackers.pairs import Pairs
from partopt.errors import AttackError


@dataclass(repr=False)
class Cellwise(Attacker):
    """Ridge regression from one cell to one patch, the same for all cells.

    Args:
        ridges: Ridge weights that are tried on validation pictures, relative to the mean squared
            feature.
        batch: Images a step.
    """

    name: ClassVar[str] = "cellwise"
    rank: ClassVar[int] = 1  # cheap: runs before those that train

    ridges: tuple[float, ...] = (1e-6, 1e-3, 1e-1, 10.0)
    batch: int = 32
    _weight: torch.Tensor | None = field(default=None, init=False)
    _side: int = field(default=0, init=False)
    _grid: int = field(default=0, init=False)

    def fit(self, pairs: Pairs, context: Context) -> None:
        """Learn from training pairs; choose the ridge weight on validation pairs."""
        maps, pictures = pairs.features, pairs.images
        self._side = pictures.shape[-1]
        # Cells that do not divide the picture are averaged until they do.
        shorter = min(*maps.shape[-2:], self._side)
        self._grid = next(g for g in range(shorter, 0, -1) if self._side % g == 0)
        gram, cross = torch.zeros(()), torch.zeros(())
        for start in range(0, len(maps), self.batch):
            rows = range(start, min(start + self.batch, len(maps)))
            x = self._cells(maps.take(rows))
            y = self._patches(as_images(pictures.take(rows)))
            gram, cross = gram + x.T @ x, cross + x.T @ y
            context.image_steps += len(rows)
            context.report(rows.stop / len(maps))
        if not torch.isfinite(gram).all():
            raise AttackError("cellwise: the feature maps are not finite")
        held = pairs.held_out
        rows = range(min(len(held), 2 * self.batch))
        target = as_images(pairs.held_out_images[: len(rows)])
        scale = gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        tried = []
        for ridge in self.ridges:
            self._weight = torch.linalg.solve(gram + ridge * scale, cross)
            error = float((self.reconstruct(held.take(rows)) - target).square().mean())
            tried.append((error, ridge, self._weight))
        self._weight = min(tried, key=lambda t: t[0])[2]

    def reconstruct(self, features: np.ndarray) -> torch.Tensor:
        """Rebuild images (N, 3, R, R) in [0, 1] from feature maps (N, C, h, w)."""
        assert self._weight is not None, "fit comes first"
        patch = self._side // self._grid
        flat = self._cells(features) @ self._weight
        columns = flat.reshape(len(features), self._grid**2, -1).transpose(1, 2)
        images = F.fold(columns.float(), self._side, patch, stride=patch)
        return checked(images, self)

    def _cells(self, features: np.ndarray) -> torch.Tensor:
        """Cells of maps as rows, with a one for the intercept: (N * grid * grid, C + 1)."""
        maps = F.adaptive_avg_pool2d(as_features(features), self._grid).flatten(2)
        rows = maps.transpose(1, 2).flatten(0, 1).double()
        return torch.cat([rows, torch.ones_like(rows[:, :1])], 1)

    def _patches(self, images: torch.Tensor) -> torch.Tensor:
        """Patches of images in the same order: (N * grid * grid, 3 * patch * patch)."""
        patch = self._side // self._grid
        return F.unfold(images, patch, stride=patch).transpose(1, 2).flatten(0, 1).double()
