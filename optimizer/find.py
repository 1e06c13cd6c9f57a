"""Find the fastest safe cut of a model, end to end."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from .. import config as c
from ..attackers.base import Attacker
from ..attackers.features import FeatureStore
from ..attackers.scoring import PROTOCOL
from ..cache import cache_dir
from ..datasets import ImageSet, load_images
from ..errors import UsageError
from ..graph import Cut, LayerGraph
from ..hashing import hash_json
from ..models import LoadedModel, load_model
from ..profilers.backends import pick_accelerator, pick_enclave
from ..profilers.base import CutLatency, Figure, Profile, Verification
from ..profilers.profile import modelled, profile, verify
from ..profilers.sgx_model import SgxModel
from .budgets import Budget, pick
from .choose import choose
from .floor import floor_of
from .rule import TEXT, Verdict, judge
from .search import Outcome, Search
from .storage import open_storage


class Watcher(Protocol):
    """Whoever shows progress."""

    def stage(self, text: str) -> None:
        """A new stage of the run begins."""

    def progress(self, what: str, share: float) -> None:
        """Part of the current stage is done; `share` in [0, 1]."""

    def attacked(self, cut: str, attacker: str, score: float | None, leaks: bool) -> None:
        """An attack ended."""


class _Silent:
    def stage(self, text: str) -> None: ...
    def progress(self, what: str, share: float) -> None: ...
    def attacked(self, cut: str, attacker: str, score: float | None, leaks: bool) -> None: ...


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
    ssim: float = 0.2,
    weights: str = "DEFAULT",
    data: str | Path | None = None,
    cuts: str | Sequence[str] = "clean",
    max_cuts: int = 24,
    depth: int | None = None,
    budget: str | None = None,
    resolution: int | None = None,
    scale: str = "corrected",
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
    feature_cache_gib: float = 8.0,
    exhaustive: bool = False,
    command: str = "",
    watcher: Watcher | None = None,
) -> SplitResult:
    """Find the cut with the lowest latency that no attacker of the panel inverts there or later.

    Args:
        model: A model spec (see `load_model`) or a loaded model.
        ssim: Threshold in (0, 1]: scores at or above it leak.
        weights: ``DEFAULT``, ``none`` or a file.
        data: Folder of images, or None for generated ones.
        cuts: Kind of cuts or names, as in `LayerGraph.cuts`.
        max_cuts: Most cuts for ``clean`` and ``all``.
        depth: Module depth of ``stage``.
        budget: ``quick``, ``standard`` or ``full``; None is quick without a GPU, else standard.
        resolution: Side in pixels at which images are rebuilt and scored; None: the budget's.
        scale: ``corrected`` (above the floor) or ``raw`` SSIM.
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
        feature_cache_gib: Disk for feature maps, GiB.
        exhaustive: Every attacker on every cut, for comparison with the search.
        command: The command line, for the result.
        watcher: Is told of progress.

    Raises:
        UsageError: A wrong argument.
        PartoptError: What else stops a run, by kind.
    """
    watcher = watcher or _Silent()
    if not 0 < ssim <= 1:
        raise UsageError(f"`ssim` got {ssim}; use a threshold above 0 and at most 1")
    if scale not in ("corrected", "raw"):
        raise UsageError(f"`scale` got {scale!r}; use 'corrected' or 'raw'")
    if workers < 1:
        raise UsageError(f"`workers` got {workers}; use 1 or more")
    if isinstance(sgx_model, str):
        sgx_model = SgxModel.parse(sgx_model)
    enclave, accelerator = pick_enclave(enclave), pick_accelerator(accelerator)
    chosen_budget = pick(budget or ("standard" if accelerator == "cuda" else "quick"))
    panel = chosen_budget.panel(list(attackers) if attackers else None)
    opened, storage_name = open_storage(storage)

    watcher.stage("loading and tracing the model")
    if isinstance(model, str):
        model = load_model(
            model, weights=weights, strict=strict, trust_model=trust_model,
            mean=mean, std=std, input_size=input_size, seed=seed,
        )  # fmt: skip
    graph = model.trace()
    listed = graph.cuts(cuts, max_cuts=max_cuts, depth=depth)
    if not listed:
        raise UsageError(f"`cuts` got {cuts!r}, which gives no cut of {model.spec}; use 'all'")

    watcher.stage("profiling all cuts")
    measured = profile(
        graph, listed, enclave=enclave, accelerator=accelerator, threads=threads, batch=batch,
        repetitions=repetitions, seed=seed, progress=lambda s: watcher.progress("profile", s),
    )  # fmt: skip
    timing = modelled(measured, graph, listed, sgx_model) if sgx_model else measured

    watcher.stage("reading the images" if data else "generating images")
    images = load_images(
        data, model.preprocessing, chosen_budget.split, seed=seed,
        minimum=chosen_budget.minimum_images,
    )  # fmt: skip
    side = _resolution(resolution, chosen_budget, model)
    floor = floor_of(images, side, seed)
    device = "cuda" if accelerator == "cuda" else "cpu"
    store = FeatureStore(
        cache_dir("features"), graph, model.preprocessing, images, model.weights_hash,
        budget_bytes=int(feature_cache_gib * 2**30), device=device,
    )  # fmt: skip
    store.on_progress = watcher.progress

    watcher.stage(f"attacking {len(listed)} cuts with {', '.join(panel)}")
    search = Search(
        listed, timing.cuts, store, panel, floor,
        threshold=ssim, scale=scale, resolution=side, storage=opened, seed=seed, device=device,
        exhaustive=exhaustive, on_progress=watcher.progress,
        on_done=lambda cut, a, leaks: watcher.attacked(cut.name, a.attacker, a.score, leaks),
    )  # fmt: skip
    outcome = search.run(workers)
    verdicts = judge([cut.name for cut in listed], search.plan.panel, outcome.evidence, ssim)
    pick_index = choose(listed, timing.cuts, [i for i, v in enumerate(verdicts) if v.safe])
    cut = None if pick_index is None else listed[pick_index]

    verified = None
    if pick_index is not None:
        watcher.stage(f"running the split at {listed[pick_index].name} for real")
        verified = verify(
            graph, listed[pick_index], measured.cuts[pick_index],
            enclave=enclave, accelerator=accelerator, threads=threads, batch=batch, seed=seed,
        )  # fmt: skip
    config = _config(
        model, graph, listed, timing, images, floor, side, chosen_budget, panel, outcome,
        verdicts, pick_index, verified, ssim, scale, seed, storage_name, command,
    )  # fmt: skip
    return SplitResult(config, cut, listed, verdicts, graph, model)


def _resolution(asked: int | None, budget: Budget, model: LoadedModel) -> int:
    own = model.preprocessing.input_size
    if asked is not None and not 16 <= asked <= own:
        raise UsageError(f"`resolution` got {asked}; use 16 to the model's input size, {own}")
    return asked or min(own, budget.resolution or own)


def _time(figure: Figure) -> c.Time:
    return c.Time(
        ms=figure.ms, noise_ms=figure.noise_ms, basis=figure.basis, backend=figure.backend
    )


def _latency(latency: CutLatency) -> dict[str, c.Time]:
    return {
        part: _time(getattr(latency, part))
        for part in ("enclave", "handoff", "accelerator", "total")
    }


def _row(cut: Cut, verdict: Verdict, attacks: list[c.Attack], latency: CutLatency) -> c.CutRow:
    strongest = max((a.ssim_raw for a in attacks if a.ssim_raw is not None), default=None)
    suffix_high = verdict.suffix_high if np.isfinite(verdict.suffix_high) else None
    return c.CutRow(
        name=cut.name,
        aliases=list(cut.aliases),
        stage=cut.stage,
        payload_bytes=cut.payload_bytes,
        head_flops=cut.head_flops,
        head_layers=cut.head_layers,
        head_param_bytes=cut.head_param_bytes,
        head_peak_activation_bytes=cut.head_peak_activation_bytes,
        ssim_raw=strongest,
        score=verdict.value,
        low=verdict.low,
        high=verdict.high,
        suffix_score=verdict.suffix_value,
        suffix_high=suffix_high,
        safe=verdict.safe,
        status=verdict.status,
        reason=verdict.reason,
        attacks=attacks,
        latency_ms=c.Latency(**_latency(latency)),
    )


def _config(
    model: LoadedModel,
    graph: LayerGraph,
    cuts: list[Cut],
    timing: Profile,
    images: ImageSet,
    floor: np.ndarray,
    resolution: int,
    budget: Budget,
    panel: dict[str, Attacker],
    outcome: Outcome,
    verdicts: list[Verdict],
    chosen: int | None,
    verified: Verification | None,
    threshold: float,
    scale: str,
    seed: int,
    storage: str,
    command: str,
) -> c.SplitConfig:
    attacks = [
        [outcome.attacks[i, a] for a in panel if (i, a) in outcome.attacks]
        for i in range(len(cuts))
    ]
    rows = [_row(*both) for both in zip(cuts, verdicts, attacks, timing.cuts, strict=True)]
    privacy = c.Privacy(
        threshold=threshold,
        scale="raw" if scale == "raw" else "corrected",
        rule=TEXT,
        evidence=budget.evidence,
        floor=float(floor.mean()),
        floor_p95=float(np.quantile(floor, 0.95)),
        ssim=PROTOCOL,
        resolution=resolution,
        data=images.source,
        data_hash=images.digest,
        images=asdict(images.split),
        skipped=images.skipped[:50],
        attackers=[c.Panel(name=n, settings=repr(a)) for n, a in panel.items()],
    )
    chosen_cut, chosen_latency = None, None
    if chosen is not None:
        cut, verdict = cuts[chosen], verdicts[chosen]
        privacy.score, privacy.low, privacy.high = verdict.value, verdict.low, verdict.high
        privacy.attacks = attacks[chosen]
        chosen_cut = c.CutInfo(
            name=cut.name,
            boundary=[
                c.Tensor(name=s.name, shape=list(s.shape), dtype=s.dtype, bytes=s.bytes)
                for s in cut.boundary
            ],
            aliases=list(cut.aliases),
            payload_bytes=cut.payload_bytes,
            head_flops=cut.head_flops,
            tail_flops=cut.tail_flops,
            head_param_bytes=cut.head_param_bytes,
            head_peak_activation_bytes=cut.head_peak_activation_bytes,
        )
        chosen_latency = c.ChosenLatency(
            **_latency(timing.cuts[chosen]),
            full_enclave=_time(timing.full_enclave),
            full_accelerator=_time(timing.full_accelerator),
            threads=timing.threads,
            batch=timing.batch,
            repetitions=timing.repetitions,
            verified=None
            if verified is None
            else c.Verified(
                predicted_ms=verified.predicted_ms,
                measured_ms=verified.measured_ms,
                profiled_ms=verified.profiled_ms,
                error=verified.error,
            ),
        )
    return c.SplitConfig(
        model=_model_info(model, graph),
        cut=chosen_cut,
        latency_ms=chosen_latency,
        full_enclave_ms=_time(timing.full_enclave),
        privacy=privacy,
        cuts=rows,
        search=c.Search(
            trials_run=outcome.run,
            trials_reused=outcome.reused,
            image_steps=outcome.image_steps,
            attack_seconds=round(outcome.seconds, 3),
            study=outcome.study,
            storage=storage,
        ),
        seed=seed,
        versions=versions(),
        warnings=_warnings(model, images, timing, budget, rows, chosen, panel),
        command=command,
    )


def _model_info(model: LoadedModel, graph: LayerGraph) -> c.ModelInfo:
    p = model.preprocessing
    return c.ModelInfo(
        spec=model.spec,
        weights=model.weights,
        weights_hash=model.weights_hash,
        random_weights=model.random_weights,
        graph_hash=graph_hash(graph),
        traced_by=graph.source,
        input_shape=list(graph.inputs[0].shape),
        input_dtype=graph.inputs[0].dtype,
        preprocessing=c.PreprocessingInfo(
            input_size=p.input_size,
            resize=p.resize,
            mean=list(p.mean),
            std=list(p.std),
            interpolation=p.interpolation,
            source=p.source,
        ),
    )


def graph_hash(graph: LayerGraph) -> str:
    """SHA-256 of the graph's nodes, operations and shapes; weights are not part of it."""
    return hash_json(
        [[n.name, n.op, n.inputs, n.spec.shape if n.spec else None] for n in graph.nodes]
    )


def _warnings(
    model: LoadedModel,
    images: ImageSet,
    timing: Profile,
    budget: Budget,
    rows: list[c.CutRow],
    chosen: int | None,
    panel: dict[str, Attacker],
) -> list[str]:
    found = [*model.warnings, *images.warnings, *timing.warnings]
    if budget.evidence == "screening":
        found.append(
            "budget quick screens and does not certify: attackers train briefly on few images; "
            "confirm the cut with --budget standard or full"
        )
    if set(budget.settings) - set(panel):
        left = ", ".join(sorted(set(budget.settings) - set(panel)))
        found.append(f"the panel was reduced: {left} did not run")
    if chosen is not None:
        rising = [
            f"{a.attacker} at {row.name}" for row in rows[chosen:] for a in row.attacks if a.note
        ]
        if rising:
            found.append(
                "still rising when the budget ended, a longer attack would score higher: "
                + ", ".join(rising[:6])
                + (f" and {len(rising) - 6} more" if len(rising) > 6 else "")
            )
    return found


def versions() -> dict[str, str]:
    """Versions of everything that a result hangs on."""
    names = ("partopt", "torch", "torchvision", "optuna", "numpy", "pytorch-msssim")
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
    return found
