"""What attackers that run the public head have in common."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch

from ..errors import AttackError
from .base import Attacker, Context, Range, Tunable, as_features
from .inversion import DISTANCES, LEVELS, SIZES, Head, Objective, invert, resized
from .pairs import Pairs
from .scoring import ssim_of

_HOPELESS = 0.02  # of SSIM, by which the descent may lose to its start and be looked at again


@dataclass(repr=False)
class WhiteBox(Attacker):
    """Descends on feature distance; subclasses say where from.

    Args:
        steps: Steps of Adam for each image.
        lr: Learning rate in pixel values.
        batch: Images inverted together.
        tvs: Weights of total variation that are tried.
        distances: Feature distances that are tried.
        tuning_images: Validation images that weight, distance, size and levels are chosen on.
        sizes: Sizes of the pictures descended on that are tried; see `Objective`.
        levels: Levels of the pictures descended on that are tried; see `Objective`.
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
    levels: tuple[tuple[int, ...], ...] = LEVELS
    objective: Objective | None = field(default=None, init=False)
    _head: Head | None = field(default=None, init=False)
    _side: int = field(default=0, init=False)
    _context: Context = field(default_factory=Context, init=False)

    def _prepare(self, context: Context, resolution: int) -> None:
        if context.head is None:
            raise AttackError(f"{self.name} needs the public head, which was not given")
        self._head, self._context = context.head, context
        self._side = context.input_size or resolution

    def _choose(self, pairs: Pairs) -> None:
        """Take what rebuilds validation images best, one choice after the other, twice.

        Once where the start is plainly better than all that was tried.
        """
        features, images = pairs.held_out, pairs.held_out_images
        few = min(self.tuning_images, len(images))
        # Where the head sees what is scored there is one size.
        sizes = self.sizes if self._side != pairs.resolution else self.sizes[:1]
        axes: dict[str, tuple[Any, ...]] = {
            "size": sizes,
            "tv": self.tvs,
            "levels": self.levels,
            "distance": self.distances,
        }
        tried: dict[Objective | None, float] = {}
        most = 2 * sum(map(len, axes.values()))

        def value_of(objective: Objective | None) -> float:
            if objective not in tried:
                self.objective = objective
                found = ssim_of(self.reconstruct, features.take(range(few)), images[:few])
                tried[objective] = float(found.mean())
                self._context.report(min(1.0, len(tried) / most))
            return tried[objective]

        chosen = Objective(**{name: values[0] for name, values in axes.items()})
        for _ in range(2):
            for name, values in axes.items():
                chosen = max((replace(chosen, **{name: value}) for value in values), key=value_of)
            if self.keeps_start and value_of(chosen) < value_of(None) - _HOPELESS:
                break
        keep = self.keeps_start and value_of(None) >= value_of(chosen)
        self.objective = None if keep else chosen

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
            self._head,
            maps,
            start,
            self.objective,
            side=self._side,
            steps=self.steps,
            lr=self.lr,
            on_step=count,
        )
        return resized(found, side), distances

    def _batches(self, features: np.ndarray) -> list[torch.Tensor]:
        device = self._context.device
        return [
            as_features(features[i : i + self.batch], device)
            for i in range(0, len(features), self.batch)
        ]
