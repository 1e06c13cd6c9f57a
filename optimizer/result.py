"""From a run's evidence to its split config."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib import metadata

import numpy as np
import torch

from .. import config as c
from ..attackers.base import RISING, Attacker
from ..attackers.scoring import PROTOCOL
from ..datasets import ImageSet
from ..graph import Cut, LayerGraph
from ..identity import graph_hash
from ..models import LoadedModel
from ..profilers.base import CutLatency, Figure, Profile, Verification
from ..sources import attack_source
from .budgets import Budget, evidence_of
from .keys import ATTACK_VERSION
from .protocols import PUBLISHED_BUDGETS, Protocol
from .rule import Verdict
from .search import Outcome

ATTACK = "attack"  # among the versions: which attack code the evidence is of


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
        reason=_reason(verdict, attacks),
        attacks=attacks,
        unplaced=verdict.unplaced,
        latency_ms=c.Latency(**_latency(latency)),
    )


def _reason(verdict: Verdict, attacks: list[c.Attack]) -> str:
    """The rule's reason and, where attacks failed, theirs."""
    notes = dict.fromkeys(a.note for a in attacks if a.outcome == "failed" and a.note)
    return "; ".join([verdict.reason, *notes] if verdict.status == "failed" else [verdict.reason])


def build_config(
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
    protocol: Protocol,
    seed: int,
    storage: str,
    command: str,
) -> c.SplitConfig:
    """Put model, figures, evidence and warnings of a run together.

    Args:
        model: The loaded model.
        graph: Its layer graph.
        cuts: All cuts looked at.
        timing: Their latencies, measured or modelled.
        images: The images.
        floor: SSIM of the blind attacker per test image.
        resolution: Side at which images were scored, in pixels.
        budget: The effort.
        panel: The attackers that ran.
        outcome: Their results.
        verdicts: The rule applied to them.
        chosen: Index of the cut to use, or None.
        verified: The chosen cut run for real.
        protocol: What the run went by.
        seed: As asked for.
        storage: Name of the study's storage.
        command: The command line.
    """
    attacks = [
        [outcome.attacks[i, a] for a in panel if (i, a) in outcome.attacks]
        for i in range(len(cuts))
    ]
    rows = [_row(*both) for both in zip(cuts, verdicts, attacks, timing.cuts, strict=True)]
    privacy = c.Privacy(
        protocol="paper" if protocol.name == "paper" else "strict",
        threshold=protocol.threshold,
        scale="raw" if protocol.scale == "raw" else "corrected",
        rule=protocol.rule,
        budget=budget.name,  # type: ignore[arg-type]
        evidence=evidence_of(budget, panel, images.split.total, resolution),
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
            worker=None if timing.worker is None else c.Worker(**asdict(timing.worker)),
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
        warnings=[
            *_published(protocol, images, budget, panel),
            *_warnings(model, images, timing, budget, privacy.evidence, rows, chosen, panel),
            *(_traced(graph, None if chosen is None else cuts[chosen])),
        ],
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
        concrete_args=model.arguments,
        leaf_modules=list(model.tracing.leaf_modules),
        preprocessing=c.PreprocessingInfo(
            input_size=p.input_size,
            resize=p.resize,
            mean=list(p.mean),
            std=list(p.std),
            interpolation=p.interpolation,
            source=p.source,
        ),
    )


def _traced(graph: LayerGraph, cut: Cut | None) -> list[str]:
    """What must be said of the graph and the chosen cut."""
    found = [] if cut is None else [f"cut after {cut.name}: {r}" for r in cut.remarks]
    if graph.difference:
        found.append(
            f"the traced graph differs from the model by rounding: {graph.difference:.1e} of what "
            "values vary by from input to input"
        )
    return found


def _published(
    protocol: Protocol, images: ImageSet, budget: Budget, panel: dict[str, Attacker]
) -> list[str]:
    """What must be said of a run that follows the published protocol."""
    if protocol.name != "paper":
        return []
    found = [
        "protocol paper is the published one: one attacker, raw SSIM, no floor, no interval; it "
        "does not certify, --protocol strict says what our panel finds"
    ]
    size = PUBLISHED_BUDGETS["full"]
    wanted, trained = size.split.train, images.split.train
    epochs = (panel["cgan"].settings()["epochs"], size.settings["cgan"]["epochs"])
    if trained < wanted or epochs[0] < epochs[1]:
        found.append(
            f"reduced: {trained} of {wanted} training images, {epochs[0]} of {epochs[1]} epochs; "
            "the c-GAN is weaker than the published one"
        )
    return found


def _warnings(
    model: LoadedModel,
    images: ImageSet,
    timing: Profile,
    budget: Budget,
    evidence: str,
    rows: list[c.CutRow],
    chosen: int | None,
    panel: dict[str, Attacker],
) -> list[str]:
    found = [*model.warnings, *images.warnings, *timing.warnings]
    if evidence == "screening" and budget.name == "quick":
        found.append(
            "budget quick screens and does not certify: attackers train briefly on few images; "
            "confirm the cut with --budget standard or full"
        )
    elif evidence != budget.evidence:
        found.append(
            f"evidence is {evidence} only: the run had fewer images, attackers or pixels than "
            f"budget {budget.name} wants"
        )
    if set(budget.settings) - set(panel):
        left = ", ".join(sorted(set(budget.settings) - set(panel)))
        found.append(f"the panel was reduced: {left} did not run")
    if chosen is not None:
        rising = [
            f"{a.attacker} at {row.name}"
            for row in rows[chosen:]
            for a in row.attacks
            if RISING in a.note
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
    found[ATTACK] = attack_label()
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
    return found


def attack_label() -> str:
    """Which attack code this is: its version and the digest of its source."""
    return f"{ATTACK_VERSION}:{attack_source()[:16]}"
