"""From a run's evidence to its split config."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib import metadata
from typing import Any

import numpy as np
import torch

from .. import config as c
from ..attackers.base import RISING
from ..attackers.decoder import Decoder
from ..attackers.scoring import PROTOCOL
from ..attackers.sketch import Sketch
from ..graph.build import Cut, LayerGraph
from ..identity.network import graph_hash
from ..identity.sources import attack_source
from ..models.load import LoadedModel
from ..profilers.base import CutLatency, Duration, Profile, Verification
from .keys import ATTACK_VERSION
from .prepare import Prepared
from .protocols import PUBLISHED_BUDGETS
from .rule import Verdict
from .settle import Settled

ATTACK = "attack"  # among the versions: which attack code the evidence is of


def time_of(duration: Duration) -> c.Time:
    """A duration as results hold it."""
    return c.Time(
        ms=duration.ms, noise_ms=duration.noise_ms, basis=duration.basis, backend=duration.backend
    )


def latency_of(latency: CutLatency) -> dict[str, c.Time]:
    """The parts of a latency and their sum, as results hold them."""
    return {
        part: time_of(getattr(latency, part))
        for part in ("enclave", "handoff", "accelerator", "total")
    }


def _row(
    cut: Cut,
    verdict: Verdict,
    attacks: list[c.Attack],
    latency: CutLatency,
    swept: bool,
    curve: c.Curve | None,
) -> c.CutRow:
    strongest = max((a.ssim_raw for a in attacks if a.ssim_raw is not None), default=None)
    suffix_high = verdict.suffix_high if np.isfinite(verdict.suffix_high) else None
    return c.CutRow(
        curve=curve,
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
        safe=verdict.status == "safe",
        status=verdict.status,
        reason=_reason(verdict, attacks),
        attacks=attacks,
        unplaced=verdict.unplaced,
        covered_by=verdict.covered_by,
        latency_ms=c.Latency(**latency_of(latency)),
        swept=swept,
    )


def _reason(verdict: Verdict, attacks: list[c.Attack]) -> str:
    """The rule's reason and, where attacks failed, theirs."""
    notes = dict.fromkeys(a.note for a in attacks if a.outcome == "failed" and a.note)
    return "; ".join([verdict.reason, *notes] if verdict.status == "failed" else [verdict.reason])


def build_config(
    ready: Prepared, settled: Settled, verified: Verification | None, storage: str
) -> c.SplitConfig:
    """Put model, times, evidence and warnings of a run together.

    Args:
        ready: What the attacks stood on.
        settled: The answer, and what it stands on.
        verified: The chosen cut run for real.
        storage: Name of the study's storage.
    """
    rows = _rows(ready, settled)
    swept = _sweep(settled)
    chosen, outcome, advice = settled.chosen, settled.outcome, settled.advice
    return c.SplitConfig(
        model=_model_info(ready.model, ready.graph),
        cut=None if chosen is None else _chosen_cut(settled.cuts[chosen]),
        latency_ms=None if chosen is None else _chosen_latency(settled.timing, chosen, verified),
        full_enclave_ms=time_of(settled.timing.full_enclave),
        privacy=_privacy(ready, settled, rows, swept),
        cuts=rows,
        search=c.Search(
            trials_run=outcome.run,
            trials_reused=outcome.reused,
            image_steps=outcome.image_steps,
            attack_seconds=round(outcome.seconds, 3),
            study=outcome.study,
            storage=storage,
        ),
        seed=ready.request.seed,
        versions=versions(),
        warnings=[
            *_advice(settled),
            *_published(ready),
            *_warnings(ready, settled, rows),
            *(_traced(ready.graph, None if chosen is None else settled.cuts[chosen])),
            *settled.remarks,
        ],
        recommendation=None if advice is None else advice.what,
        recommended_because="" if advice is None else advice.reason,
        sweep=swept,
        command=ready.request.command,
        taken=settled.timing.taken,
    )


def _rows(ready: Prepared, settled: Settled) -> list[c.CutRow]:
    done = settled.outcome.attacks
    rows = []
    both = zip(settled.cuts, settled.verdicts, settled.timing.cuts, strict=True)
    for i, (cut, verdict, latency) in enumerate(both):
        attacks = [done[i, a] for a in ready.panel if (i, a) in done]
        curve = settled.outcome.curves.get(i)
        rows.append(_row(cut, verdict, attacks, latency, cut.node in settled.promoted, curve))
    return rows


def _privacy(
    ready: Prepared, settled: Settled, rows: list[c.CutRow], swept: c.Sweep | None
) -> c.Privacy:
    protocol, images, floor = ready.protocol, ready.images, ready.floor
    at: dict[str, Any] = {}
    if settled.chosen is not None:
        verdict = settled.verdicts[settled.chosen]
        highs = [a.high for cut in (swept.cuts if swept else []) for a in cut.attacks]
        at = {
            "score": verdict.value,
            "low": verdict.low,
            "high": verdict.high,
            "suffix_high": max([verdict.suffix_high, *(h for h in highs if h is not None)]),
            "attacks": rows[settled.chosen].attacks,
        }
    return c.Privacy(
        protocol=protocol.name,
        threshold=protocol.threshold,
        scale=protocol.scale,
        rule=protocol.rule,
        budget=ready.budget.name,
        evidence=ready.evidence,
        floor=float(floor.mean()),
        floor_p95=float(np.quantile(floor, 0.95)),
        ssim=PROTOCOL,
        resolution=ready.side,
        sides=list(ready.bench.sides),
        data=images.source,
        data_hash=images.digest,
        images=asdict(images.split),
        skipped=images.skipped[:50],
        attackers=[c.Panel(name=n, settings=repr(a)) for n, a in ready.panel.items()],
        tuned=ready.request.effort.tune,
        worst_share=ready.request.adversary.worst_share,
        worst_retrieval=ready.request.adversary.worst_retrieval,
        adversary_images=next((n.images for n in settled.outcome.curves.values()), None),
        shortfall=settled.grant.shortfall,
        **at,
    )


def _chosen_cut(cut: Cut) -> c.CutInfo:
    return c.CutInfo(
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


def _chosen_latency(timing: Profile, chosen: int, verified: Verification | None) -> c.ChosenLatency:
    return c.ChosenLatency(
        **latency_of(timing.cuts[chosen]),
        full_enclave=time_of(timing.full_enclave),
        full_accelerator=time_of(timing.full_accelerator),
        threads=timing.threads,
        batch=timing.batch,
        repetitions=timing.repetitions,
        engine="ort" if timing.engine == "ort" else "torch",
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


def _sweep(settled: Settled) -> c.Sweep | None:
    """What cheap attackers reached at the cuts that were not asked for."""
    swept = settled.swept
    if swept is None:
        return None
    return c.Sweep(
        attackers=swept.attackers,
        sketch=swept.ahead[Sketch.name],
        decoder=swept.ahead.get(Decoder.name),
        cuts=[
            c.SweptCut(
                name=cut.name,
                tensors=len(cut.boundary),
                payload_bytes=cut.payload_bytes,
                attacks=attacks,
            )
            for cut, attacks in swept.attacks
        ],
    )


def _advice(settled: Settled) -> list[str]:
    """What must be said first: not to split, or that nothing is decided."""
    found = []
    if settled.advice is not None and settled.advice.what == "do not split":
        found.append(f"do not split: {settled.advice.reason}; {CHANGE}")
    if settled.grant.status == "undecided":
        found.append(f"nothing is decided: {settled.grant.shortfall}")
    return found


CHANGE = (
    "an accelerator (--accelerator cuda), times of the machine of deployment (partopt profile "
    "there, find --profile here, or --sgx-model) or a defence that lets an earlier cut pass would "
    "change that"
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


def _published(ready: Prepared) -> list[str]:
    """What must be said of a run that follows the published protocol."""
    if ready.protocol.name != "paper":
        return []
    found = [
        "protocol paper is the published one: one attacker, raw SSIM, no floor, no interval; it "
        "does not certify, --protocol strict says what our panel finds"
    ]
    size = PUBLISHED_BUDGETS["full"]
    wanted, trained = size.split.train, ready.images.split.train
    epochs = (ready.panel["cgan"].settings()["epochs"], size.settings["cgan"]["epochs"])
    if trained < wanted or epochs[0] < epochs[1]:
        found.append(
            f"reduced: {trained} of {wanted} training images, {epochs[0]} of {epochs[1]} epochs; "
            "the c-GAN is weaker than the published one"
        )
    return found


def _warnings(ready: Prepared, settled: Settled, rows: list[c.CutRow]) -> list[str]:
    """What must be said of model, images, times and evidence."""
    budget, panel, evidence, chosen = ready.budget, ready.panel, ready.evidence, settled.chosen
    found = [*ready.warnings, *settled.timing.warnings]
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
