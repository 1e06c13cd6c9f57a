"""What attacks on single cuts stand on: model, cuts, panel, images, their floor, the features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import arguments
from ..attackers.base import Attacker
from ..attackers.features import FeatureStore
from ..cache import cache_dir
from ..datasets import ImageSet, at_resolution, load_images
from ..graph import Cut
from ..models import LoadedModel, load_model
from ..profilers.backends import pick_accelerator
from ..profilers.memory import keep_memory
from ..traceargs import Tracing
from .budgets import Budget, pick
from .find import Watcher, resolution_of
from .floor import floor_of


@dataclass(frozen=True)
class Ground:
    """All of it.

    Attributes:
        budget: How much attack is paid for.
        panel: The attackers by name, cheap ones first.
        cuts: In execution order.
        side: At which images are rebuilt and scored, in pixels.
        floor: SSIM of the blind attacker per test image.
        pictures: All images at that side, uint8.
        device: Where attackers train.
    """

    budget: Budget
    panel: dict[str, Attacker]
    loaded: LoadedModel
    cuts: list[Cut]
    images: ImageSet
    side: int
    floor: np.ndarray
    store: FeatureStore
    pictures: np.ndarray
    device: str

    @property
    def warnings(self) -> list[str]:
        """What the user must know of model and images."""
        return [*self.loaded.warnings, *self.images.warnings]


def lay(
    model: str,
    cuts: str | Sequence[str],
    watcher: Watcher,
    *,
    attackers: Sequence[str] | None = None,
    max_cuts: int = 24,
    weights: str = "DEFAULT",
    data: str | Path | None = None,
    budget: str | Budget | None = None,
    resolution: int | None = None,
    accelerator: str = "auto",
    seed: int = 0,
    strict: bool = False,
    trust_model: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
    tracing: Tracing | None = None,
) -> Ground:
    """Load, trace, read and measure the floor; arguments as in `find`."""
    arguments.seed(seed)
    arguments.whole("max_cuts", max_cuts, 1)
    keep_memory()
    device = pick_accelerator(accelerator)
    chosen = pick(budget, device)
    panel = chosen.panel(list(attackers) if attackers else None)
    watcher.stage("loading and tracing the model")
    loaded = load_model(
        model, weights=weights, strict=strict, trust_model=trust_model, mean=mean, std=std,
        input_size=input_size, seed=seed, tracing=tracing,
    )  # fmt: skip
    graph = loaded.trace()
    targets = graph.cuts(cuts, max_cuts=max_cuts)
    watcher.stage("reading the images" if data else "generating images")
    images = load_images(
        data, loaded.preprocessing, chosen.split, seed=seed, minimum=chosen.minimum_images
    )
    side = resolution_of(resolution, chosen, loaded)
    store = FeatureStore(
        cache_dir("features"), graph, loaded.preprocessing, images, loaded.weights_hash,
        device=device,
    )  # fmt: skip
    return Ground(
        chosen, panel, loaded, targets, images, side, floor_of(images, side, seed), store,
        at_resolution(images.images, side), device,
    )  # fmt: skip
