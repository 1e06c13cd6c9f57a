"""The first half of every run: model, cuts, panel, images, their floor, and the features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..attackers.base import Attacker
from ..attackers.features import FeatureStore, Making
from ..attackers.scales import sides_at
from ..cache import cache_dir
from ..errors import DataError, UsageError
from ..graph.build import Cut, LayerGraph
from ..images.load import ImageSet, load_images
from ..models.load import LoadedModel, load
from ..profilers.backends import pick_accelerator
from ..profilers.memory import keep_memory
from .attempt import Bench
from .budgets import Budget, EvidenceLevel, budget_of, evidence_of
from .floor import floors_of
from .protocols import Protocol, protocol_of
from .requests import FindRequest
from .watcher import Watcher


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What attacks stand on.

    Attributes:
        request: As it was asked for.
        protocol: What the run goes by.
        budget: How much attack is paid for.
        panel: The attackers by name, cheap ones first.
        model: The loaded model.
        graph: Its layer graph.
        cuts: Those asked for, in execution order.
        images: At the model's input size.
        side: At which images are rebuilt and scored, in pixels.
        floors: SSIM of the blind attacker per test image, (test images,), by side in pixels at
            which pictures are compared.
        store: The feature maps of all cuts.
        device: Where attackers train.
    """

    request: FindRequest
    protocol: Protocol
    budget: Budget
    panel: dict[str, Attacker]
    model: LoadedModel
    graph: LayerGraph
    cuts: list[Cut]
    images: ImageSet
    side: int
    floors: dict[int, np.ndarray]
    store: FeatureStore
    device: str

    @cached_property
    def bench(self) -> Bench:
        """What all attacks of the run have in common."""
        return Bench(
            store=self.store,
            floors=self.floors,
            scale=self.protocol.scale,
            seed=self.request.seed,
            device=self.device,
        )

    @property
    def pictures(self) -> np.ndarray:
        """All images at `side`, uint8 (N, 3, side, side)."""
        return self.bench.pictures

    @property
    def floor(self) -> np.ndarray:
        """The floor at `side`."""
        return self.floors[self.side]

    @property
    def evidence(self) -> EvidenceLevel:
        """What results are worth at most."""
        return evidence_of(self.budget, self.panel, self.images.split.total, self.side)

    @property
    def certifies(self) -> bool:
        """Whether a cut that passes may be called safe, not merely screened."""
        return self.evidence != "screening"

    @property
    def warnings(self) -> list[str]:
        """What the user must know of model and images."""
        return [*self.model.warnings, *self.images.warnings]


def prepare(request: FindRequest, watcher: Watcher) -> Prepared:
    """Load, trace, list the cuts, read the images and measure their floor.

    Raises:
        UsageError: A wrong argument, or cuts of which the model has none.
        DataError: Too few images, or others than those expected.
        PartoptError: What else stops it, by kind.
    """
    keep_memory()
    which, effort = request.which_cuts, request.effort
    protocol = protocol_of(
        request.protocol,
        ssim=request.ssim,
        scale=request.scale,
        cuts=which.cuts,
        attackers=effort.attackers,
    )
    device = pick_accelerator(request.timing.accelerator)
    budget = budget_of(effort.budget, device, protocol.budgets)
    panel = budget.panel(protocol.attackers)
    watcher.stage("loading and tracing the model")
    model = request.model if isinstance(request.model, LoadedModel) else load(request.model)
    graph = model.trace()
    cuts = graph.cuts(protocol.cuts, max_cuts=which.max_cuts, depth=which.depth)
    if not cuts:
        raise UsageError(
            f"`cuts` got {protocol.cuts!r}, which gives no cut of {model.spec}; use 'all'"
        )
    if request.profile is not None:  # before anything is spent on images
        request.profile.hold(graph, model.spec)
    images = _images(request, model, budget, watcher)
    side = resolution_of(effort.resolution, budget, model)
    sides = sides_at(side, fixed=effort.resolution is not None or protocol.name == "paper")
    return Prepared(
        request=request,
        protocol=protocol,
        budget=budget,
        panel=panel,
        model=model,
        graph=graph,
        cuts=cuts,
        images=images,
        side=side,
        floors=floors_of(images, side, sides, request.seed),
        store=FeatureStore(
            cache_dir("features"),
            graph,
            model.preprocessing,
            images,
            model.weights_hash,
            Making(
                budget_bytes=int(request.feature_cache_gib * 2**30),
                device=device,
                on_progress=watcher.progress,
            ),
        ),
        device=device,
    )


def _images(request: FindRequest, model: LoadedModel, budget: Budget, watcher: Watcher) -> ImageSet:
    """The images asked for, held against those that are expected."""
    data, expected = request.images.data, request.images.expected_data
    watcher.stage("reading the images" if data else "generating images")
    images = load_images(
        data,
        model.preprocessing,
        budget.split,
        seed=request.seed,
        minimum=budget.minimum_images,
    )
    if expected is not None and images.digest != expected:
        raise DataError(
            f"`data` got {str(data)!r}, whose images are not those of the evidence (hash "
            f"{images.digest[:12]} instead of {expected[:12]}); give the same folder, or accept "
            "it with --new-data"
        )
    return images


def resolution_of(asked: int | None, budget: Budget, model: LoadedModel) -> int:
    """The side in pixels that images are rebuilt and scored at.

    Raises:
        UsageError: `asked` is below 16 or above the model's input size.
    """
    own = model.preprocessing.input_size
    if asked is not None and not 16 <= asked <= own:
        raise UsageError(f"`resolution` got {asked}; use 16 to the model's input size, {own}")
    return asked or min(own, budget.resolution or own)
