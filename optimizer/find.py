"""Find the fastest safe cut of a model, end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .. import arguments
from .. import config as c
from ..attackers.features import FeatureStore
from ..attackers.sketch import Sketch
from ..cache import cache_dir
from ..datasets import load_images
from ..errors import DataError, UsageError
from ..graph import Cut, LayerGraph
from ..models import LoadedModel, load_model
from ..profilers.backends import pick_accelerator, pick_enclave
from ..profilers.base import Profile
from ..profilers.conditions import Conditions
from ..profilers.profile import modelled, profile, verify
from ..profilers.sgx_model import SgxModel
from ..traceargs import Tracing
from .budgets import Budget, evidence_of, pick
from .choose import compares
from .floor import floor_of
from .minima import grant_of
from .protocols import protocol_of
from .result import build_config
from .rule import Verdict
from .search import Search
from .settle import Effort, note, settle
from .storage import open_storage


class Watcher(Protocol):
    """Whoever shows progress."""

    def stage(self, text: str, jobs: int | None = None) -> None:
        """A new stage of the run begins; it has at most `jobs` attacks, where it has any."""

    def progress(self, what: str, share: float) -> None:
        """Part of the current stage is done; `share` in [0, 1]."""

    def attacked(self, cut: str, attacker: str, score: float | None, leaks: bool) -> None:
        """An attack ended."""


class Silent:
    """Shows nothing."""

    def stage(self, text: str, jobs: int | None = None) -> None:
        """Nothing."""

    def progress(self, what: str, share: float) -> None:
        """Nothing."""

    def attacked(self, cut: str, attacker: str, score: float | None, leaks: bool) -> None:
        """Nothing."""


@dataclass
class SplitResult:
    """What `find` found.

    Attributes:
        config: The split config: every figure, setting and warning.
        cut: The chosen cut, or None where no cut is safe.
        cuts: All cuts looked at, in execution order.
        verdicts: The rule's answer for each.
        graph: The layer graph.
        model: The loaded model.
    """

    config: c.SplitConfig
    cut: Cut | None
    cuts: list[Cut]
    verdicts: list[Verdict]
    graph: LayerGraph
    model: LoadedModel

    @property
    def found(self) -> bool:
        """Whether there is a safe cut."""
        return self.cut is not None


def find(
    model: str | LoadedModel,
    *,
    ssim: float | None = None,
    protocol: str = "strict",
    weights: str = "DEFAULT",
    data: str | Path | None = None,
    cuts: str | Sequence[str] | None = None,
    max_cuts: int = 24,
    depth: int | None = None,
    budget: str | Budget | None = None,
    resolution: int | None = None,
    scale: str | None = None,
    attackers: Sequence[str] | None = None,
    enclave: str = "auto",
    accelerator: str = "auto",
    sgx_model: SgxModel | str | None = None,
    threads: int = 1,
    batch: int = 1,
    repetitions: int = 20,
    storage: str | None = None,
    workers: int = 1,
    seed: int = 0,
    strict: bool = False,
    trust_model: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
    tracing: Tracing | None = None,
    feature_cache_gib: float = 8.0,
    exhaustive: bool = False,
    tune: int = 0,
    first: tuple[str, str] | None = None,
    expected_data: str | None = None,
    times: Profile | None = None,
    attack: bool = True,
    command: str = "",
    watcher: Watcher | None = None,
) -> SplitResult:
    """Find the cut with the lowest latency that no attacker of the panel inverts there or later.

    Args:
        model: A model spec (see `load_model`) or a loaded model.
        ssim: Threshold in (0, 1]: scores at or above it leak; None is 0.2.
        protocol: ``strict``, or ``paper``: the published way, which fixes `ssim`, `scale`,
            `attackers` and the kind of cuts (see `protocols`).
        weights: ``DEFAULT``, ``none`` or a file.
        data: Folder of images, or None for generated ones.
        cuts: Kind of cuts or names, as in `LayerGraph.cuts`; None is ``clean``.
        max_cuts: Most cuts for ``clean`` and ``all``.
        depth: Module depth of ``stage``.
        budget: ``quick``, ``standard`` or ``full``; None is quick without a GPU, else standard.
        resolution: Side in pixels at which images are rebuilt and scored; None: the budget's.
        scale: ``corrected`` (above the floor, what None means) or ``raw`` SSIM.
        attackers: Names, or None for the budget's panel.
        enclave, accelerator: Backends to profile on; ``auto`` takes the strongest there is.
        sgx_model: Scale native enclave times (labelled modelled); text is parsed.
        threads, batch, repetitions: For the profile, equal on both sides.
        storage: None for a journal in the cache folder, a ``.journal`` file or a database URL.
        workers: Attacks at a time.
        seed: For everything random.
        strict: Default weights that cannot be had are an error.
        trust_model: Allow a ``.pt2`` file.
        mean, std, input_size: In place of the model's own preprocessing.
        tracing: Arguments of ``forward`` to fix and modules to keep whole.
        feature_cache_gib: Disk for feature maps, GiB.
        exhaustive: Every attacker on every cut, for comparison with the search.
        tune: Settings tried for each attacker at the cut returned and at the one before; 0: none.
        first: A cut and an attacker to begin with; a leak proven there ends the search.
        expected_data: Hash that the images must have; None takes any.
        times: Latencies of these very cuts, known already; None profiles them.
        attack: False attacks nothing: only what the storage has is evidence.
        command: The command line, for the result.
        watcher: Is told of progress.

    Raises:
        UsageError: A wrong argument.
        PartoptError: What else stops a run, by kind.
    """
    watcher = watcher or Silent()
    terms = protocol_of(protocol, ssim=ssim, scale=scale, cuts=cuts, attackers=attackers)
    if not 0 < terms.threshold <= 1:
        raise UsageError(f"`ssim` got {ssim}; use a threshold above 0 and at most 1")
    if terms.scale not in ("corrected", "raw"):
        raise UsageError(f"`scale` got {scale!r}; use 'corrected' or 'raw'")
    arguments.whole("tune", tune, 0)
    arguments.whole("workers", workers, 1, arguments.MOST_WORKERS)
    arguments.whole("batch", batch, 1)
    arguments.whole("repetitions", repetitions, 1)
    arguments.whole("max_cuts", max_cuts, 1)
    arguments.whole("depth", depth, 1)
    arguments.threads(threads)
    arguments.seed(seed)
    arguments.above_zero("feature_cache", feature_cache_gib, "an amount of GiB")
    if isinstance(sgx_model, str):
        sgx_model = SgxModel.parse(sgx_model)
    enclave, accelerator = pick_enclave(enclave), pick_accelerator(accelerator)
    chosen_budget = pick(budget, accelerator, terms.budgets)
    panel = chosen_budget.panel(terms.attackers)
    opened, storage_name = open_storage(storage)

    watcher.stage("loading and tracing the model")
    if isinstance(model, str):
        model = load_model(
            model, weights=weights, strict=strict, trust_model=trust_model,
            mean=mean, std=std, input_size=input_size, seed=seed, tracing=tracing,
        )  # fmt: skip
    graph = model.trace()
    listed = graph.cuts(terms.cuts, max_cuts=max_cuts, depth=depth)
    if not listed:
        raise UsageError(
            f"`cuts` got {terms.cuts!r}, which gives no cut of {model.spec}; use 'all'"
        )

    watcher.stage("profiling all cuts")
    conditions = Conditions(
        enclave=enclave,
        accelerator=accelerator,
        threads=threads,
        batch=batch,
        repetitions=repetitions,
        seed=seed,
    )
    measured = times or profile(
        graph, listed, conditions, progress=lambda s: watcher.progress("profile", s)
    )
    timing = modelled(measured, graph, listed, sgx_model) if sgx_model else measured

    watcher.stage("reading the images" if data else "generating images")
    images = load_images(
        data, model.preprocessing, chosen_budget.split, seed=seed,
        minimum=chosen_budget.minimum_images,
    )  # fmt: skip
    if expected_data is not None and images.digest != expected_data:
        raise DataError(
            f"`data` got {str(data)!r}, whose images are not those of the evidence (hash "
            f"{images.digest[:12]} instead of {expected_data[:12]}); give the same folder, or "
            "accept it with --new-data"
        )
    side = resolution_of(resolution, chosen_budget, model)
    floor = floor_of(images, side, seed)
    device = "cuda" if accelerator == "cuda" else "cpu"
    store = FeatureStore(
        cache_dir("features"), graph, model.preprocessing, images, model.weights_hash,
        budget_bytes=int(feature_cache_gib * 2**30), device=device,
    )  # fmt: skip
    store.on_progress = watcher.progress

    watcher.stage(f"attacking {len(listed)} cuts with {', '.join(panel)}", len(listed) * len(panel))
    evidence = evidence_of(chosen_budget, panel, images.split.total, side)
    sweeps = attack and terms.name == "strict"
    effort = Effort(
        graph.cuts("all") if sweeps else [], Sketch(**chosen_budget.sweep),
        grant_of(images.split, panel, evidence, terms.budgets), tune if attack else 0, workers,
    )  # fmt: skip

    def make(over: list[Cut], latencies: Profile) -> Search:
        inside, outside = latencies.full_enclave, latencies.full_accelerator
        search = Search(
            over, latencies.cuts, store, panel, floor,
            threshold=terms.threshold, scale=terms.scale, interval=terms.interval, resolution=side,
            storage=opened, seed=seed, device=device, exhaustive=exhaustive, first=first,
            attack=attack, whole=inside if compares(inside, outside) else None,
            on_progress=watcher.progress,
            on_done=lambda cut, a, leaks: watcher.attacked(cut.name, a.attacker, a.score, leaks),
        )  # fmt: skip
        search.on_tuned = lambda cut, name, score: watcher.attacked(
            cut.name, name, score.value, score.low >= terms.threshold
        )
        return search

    def time_of(more: list[Cut]) -> Profile:
        found = profile(graph, more, conditions, progress=lambda s: watcher.progress("profile", s))
        return modelled(found, graph, more, sgx_model) if isinstance(sgx_model, SgxModel) else found

    as_measured = {c.node: t for c, t in zip(listed, measured.cuts, strict=True)}
    settled = settle(listed, timing, make, time_of, effort, watcher)
    listed, timing, pick_index = settled.cuts, settled.timing, settled.chosen
    verdicts, outcome = settled.verdicts, settled.outcome
    cut = None if pick_index is None else listed[pick_index]

    verified = None
    if pick_index is not None and times is None:
        watcher.stage(f"running the split at {listed[pick_index].name} for real")
        profiled = as_measured[listed[pick_index].node]
        verified = verify(graph, listed[pick_index], profiled, conditions)
    config = build_config(
        model, graph, listed, timing, images, floor, side, chosen_budget, panel, outcome,
        verdicts, pick_index, verified, terms, seed, storage_name, command,
    )  # fmt: skip
    config.privacy.tuned = tune
    note(config, settled)
    return SplitResult(config, cut, listed, verdicts, graph, model)


def resolution_of(asked: int | None, budget: Budget, model: LoadedModel) -> int:
    """The side in pixels that images are rebuilt and scored at."""
    own = model.preprocessing.input_size
    if asked is not None and not 16 <= asked <= own:
        raise UsageError(f"`resolution` got {asked}; use 16 to the model's input size, {own}")
    return asked or min(own, budget.resolution or own)
