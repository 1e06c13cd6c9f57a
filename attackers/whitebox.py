"""What attackers that run the public head have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from ..errors import AttackError
from .base import Attacker, Context, Range, Tunable, as_features
from .inversion import DISTANCES, SIZES, Head, Objective, invert, resized
from .rows import Rows
from .scoring import ssim_of


@dataclass(repr=False)
class WhiteBox(Attacker):
    """Descends on feature distance; subclasses say where from.

    Args:
        steps: Steps of Adam for each image.
        lr: Learning rate in pixel values.
        batch: Images inverted together.
        tvs: Weights of total variation that are tried.
        distances: Feature distances that are tried.
        tuning_images: Validation images that weight, distance and size are chosen on.
        sizes: Sizes of the pictures descended on that are tried; see `Objective`.
    """

    white_box: ClassVar[bool] = True
    tunable: ClassVar[Tunable] = {"lr": Range(5e-3, 0.3)}

    steps: int = 300
    lr: float = 0.03
    batch: int = 16
    tvs: tuple[float, ...] = (0.0, 0.1, 1.0, 3.0, 30.0)
    distances: tuple[str, ...] = DISTANCES
    tuning_images: int = 16
    sizes: tuple[str, ...] = SIZES
    objective: Objective | None = field(default=None, init=False)
    _head: Head | None = field(default=None, init=False)
    _side: int = field(default=0, init=False)
    _context: Context = field(default_factory=Context, init=False)

    def _prepare(self, context: Context | None, resolution: int) -> Context:
        context = context or Context()
        if context.head is None:
            raise AttackError(f"{self.name} needs the public head, which was not given")
        self._head, self._context = context.head, context
        self._side = context.input_size or resolution
        return context

    def _choose(self, features: Rows, images: np.ndarray, resolution: int) -> None:
        """Take what rebuilds validation images best; None is no descent."""
        few = min(self.tuning_images, len(images))
        # Where the head sees what is scored there is one size.
        sizes = self.sizes if self._side != resolution else self.sizes[:1]
        choices: list[Objective | None] = [
            Objective(d, tv, size) for d in self.distances for tv in self.tvs for size in sizes
        ]
        if self.keeps_start:
            choices.append(None)
        best, chosen = -np.inf, choices[-1]
        for i, choice in enumerate(choices):
            self.objective = choice
            value = float(ssim_of(self.reconstruct, features.take(range(few)), images[:few]).mean())
            if value > best:
                best, chosen = value, choice
            self._context.report((i + 1) / len(choices))
        self.objective = chosen

    keeps_start: ClassVar[bool] = False  # whether the start alone may be the answer

    def _descend(
        self, maps: torch.Tensor, start: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._head is not None, "fit first"
        assert self.objective is not None

        def count() -> None:
            self._context.image_steps += len(maps)

        side = start.shape[-1]
        if self.objective.size == "input":
            start = resized(start, self._side)
        found, distances = invert(
            self._head, maps, start, self.objective,
            side=self._side, steps=self.steps, lr=self.lr, on_step=count,
        )  # fmt: skip
        return resized(found, side), distances

    def _batches(self, features: np.ndarray) -> list[torch.Tensor]:
        device = self._context.device
        return [
            as_features(features[i : i + self.batch], device)
            for i in range(0, len(features), self.batch)
        ]
