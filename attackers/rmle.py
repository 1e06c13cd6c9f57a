"""White-box optimisation from nothing: regularised maximum likelihood."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from ..hashing import derive_seed
from .base import Context, as_images, checked
from .pairs import Pairs
from .whitebox import WhiteBox


@dataclass(repr=False)
class Rmle(WhiteBox):
    """Regularised maximum likelihood estimation (He, Zhang and Lee, ACSAC 2019, section 4.2).

    Minimises the distance between the public head's features and those seen, plus total variation,
    over the image, with Adam. The first start is the mean training image, the others are noise
    around it; of an image's restarts the one whose features fit best is kept, which the attacker
    can tell without the secret. Weight and distance are chosen on validation images; the paper
    fixes both.

    Args:
        restarts: Starts for each image.
    """

    name: ClassVar[str] = "rmle"
    rank: ClassVar[int] = 3

    restarts: int = 2
    _mean: torch.Tensor | None = field(default=None, init=False)
    _starts: int = field(default=1, init=False)

    def fit(self, pairs: Pairs, context: Context) -> None:
        """Take the mean training image, and choose the objective on validation images."""
        targets = pairs.images
        self._prepare(context, pairs.resolution)
        total, batch = torch.zeros(targets.shape[1:], dtype=torch.float64), 64
        for i in range(0, len(targets), batch):
            part = targets.take(range(i, min(i + batch, len(targets))))
            total += as_images(part).double().sum(0)
        self._mean = (total / len(targets)).float().to(context.device)
        self._starts = 1  # restarts cost alike for every choice
        self._choose(pairs)
        self._starts = max(1, self.restarts)

    def reconstruct(self, features: np.ndarray) -> torch.Tensor:
        """Invert; seconds an image, not milliseconds."""
        assert self._mean is not None, "fit first"
        out = []
        for maps in self._batches(features):
            generator = torch.Generator().manual_seed(derive_seed(self._context.seed, "starts"))
            best, lowest = None, None
            for i in range(self._starts):
                start = self._mean.expand(len(maps), *self._mean.shape).clone()
                if i:
                    noise = torch.randn(start.shape[1:], generator=generator).to(start.device)
                    start = (start + 0.2 * noise).clamp(0, 1)
                images, distance = self._descend(maps, start)
                if best is None or lowest is None:
                    best, lowest = images, distance
                else:
                    better = distance < lowest
                    best[better], lowest[better] = images[better], distance[better]
            assert best is not None
            out.append(checked(best, self).cpu())
        return torch.cat(out)
