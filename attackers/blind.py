"""The attacker that never sees the features: the floor under every score."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from .base import Attacker, Context, as_images, checked
from .fast_ssim import fast_ssim
from .pairs import Pairs
from .rows import Rows


@dataclass(repr=False)
class Blind(Attacker):
    """The best single picture: what SSIM can be had without the features.

    Candidates are the training set's mean image, the best flat colour, and a picture optimised by
    gradient ascent on training SSIM from the better of the two; whichever scores best on the
    validation images is the answer to everything.

    Args:
        steps: Gradient steps on the picture.
        batch: Training images a step.
        lr: Adam's learning rate.
        levels: Grey levels tried for the flat colour (the mean colour's hue is kept).
    """

    name: ClassVar[str] = "blind"
    needs_features: ClassVar[bool] = False

    steps: int = 60
    batch: int = 16
    lr: float = 0.01
    levels: int = 11
    _picture: torch.Tensor | None = field(default=None, init=False)

    def fit(self, pairs: Pairs, context: Context) -> None:
        """Find the picture; feature maps are not looked at."""
        rows = pairs.images
        rng = np.random.default_rng(context.seed)
        mean = _mean_image(rows)
        some = as_images(rows.take(np.sort(rng.permutation(len(rows))[:48])))
        hue = mean.mean((2, 3), keepdim=True) - mean.mean()
        flats = [
            (level + hue).clamp(0, 1).expand_as(mean) for level in np.linspace(0, 1, self.levels)
        ]
        flat = max(flats, key=lambda p: _mean_ssim(p, some))
        start = max((mean, flat), key=lambda p: _mean_ssim(p, some))
        optimised = self._ascend(start, rows, rng)
        held_out = as_images(pairs.held_out_images)
        self._picture = max((mean, flat, optimised), key=lambda p: _mean_ssim(p, held_out))

    def _ascend(self, start: torch.Tensor, rows: Rows, rng: np.random.Generator) -> torch.Tensor:
        picture = start.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([picture], self.lr)
        for _ in range(self.steps):
            batch = as_images(rows.take(rng.integers(0, len(rows), min(self.batch, len(rows)))))
            loss = -fast_ssim(picture.expand_as(batch), batch).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                picture.clamp_(0, 1)
        return picture.detach()

    def reconstruct(self, features: np.ndarray) -> torch.Tensor:
        """The same picture for each of the given rows."""
        assert self._picture is not None, "fit first"
        return checked(self._picture, self).expand(len(features), -1, -1, -1)


def _mean_image(rows: Rows, batch: int = 64) -> torch.Tensor:
    total = torch.zeros(1, *rows.shape[1:], dtype=torch.float64)
    for start in range(0, len(rows), batch):
        total += as_images(rows.take(range(start, min(start + batch, len(rows))))).double().sum(0)
    return (total / len(rows)).float()


def _mean_ssim(picture: torch.Tensor, images: torch.Tensor) -> float:
    with torch.no_grad():
        parts = [fast_ssim(picture.expand_as(b), b) for b in images.split(16)]
    return float(torch.cat(parts).mean())
