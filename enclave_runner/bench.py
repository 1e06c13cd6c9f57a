"""Measure a deployed split, beside what else one could do, in one interleaved run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..config import SplitConfig
from ..errors import ExportError, UsageError
from .bundles.bundle import SPLIT, parts_of
from .client import Answer, Client
from .lowering.joining import joined
from .lowering.model import lowered
from .lowering.optimised import optimised
from .orchestrator import ServeOptions, Service
from .probing import OrtProbe, Probe
from .program.loading import load_program
from .program.parts import weights_of
from .program.programs import Program
from .program.recording import join
from .program.tensors import DTYPES

STAGES = ("decrypt", "queue", "preprocess", "head", "hand-off", "tail", "return")
INSIDE, OUTSIDE = "whole in enclave", "whole outside"
# One whole-model pass for so many requests.
EVERY = 2
WARM_UP = 5


@dataclass(kw_only=True)
class Measured:
    """What `bench` found. Times in milliseconds.

    Attributes:
        backend, label, device, transport: Where and how it ran.
        requests: Timed requests, one after the other.
        stages: p50, p95 and p99 of each stage, of ``split`` (head + hand-off + tail), of ``inside``
            (all that the head worker sees) and of ``client`` (end to end).
        overhead_ms: Median of what end to end takes beyond preprocessing, head and tail.
        baselines: Medians: ``whole in enclave``, ``whole outside`` (the bare forward pass),
            ``published`` (fresh head process and file hand-off for each request, end to end).
        pipelined: Requests a second with several in flight, and what the slowest stage allows.
        found_ms: What `find` predicted for ``split``; None if for another backend.
        found_error: (measured - found) / measured; a drift of the machine since then is in it.
        predicted_ms: The same prediction made in this run, interleaved: the head's share of a pass
            inside, `find`'s hand-off, the tail's share of a pass outside.
        predicted_error: (measured - predicted) / measured.
        notes: What could not be measured, and why.
    """

    backend: str
    label: str
    device: str
    transport: str
    threads: int
    requests: int
    start_s: float
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    overhead_ms: float = 0.0
    baselines: dict[str, float] = field(default_factory=dict)
    pipelined: dict[str, float] = field(default_factory=dict)
    found_ms: float | None = None
    found_error: float | None = None
    predicted_ms: float | None = None
    predicted_error: float | None = None
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def bench(
    folder: Path,
    image: bytes,
    options: ServeOptions,
    key: bytes,
    *,
    insecure: bool,
    requests: int = 100,
    published: int = 3,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> Measured:
    """Serve the bundle and measure it.

    Args:
        folder: The bundle.
        image: An encoded image that every request carries.
        options: How to serve it.
        key: The weights' key.
        insecure: As in `Service`.
        requests: Timed requests.
        published: Requests in the published way, each of which starts an enclave.
        progress: Told what is going on and the share done.
    """
    if requests < 10:
        raise UsageError(f"`requests` got {requests}; use 10 or more")
    progress("starting", 0.0)
    with Service(folder, options, key=key, insecure=insecure) as service:
        found = Measured(
            backend=service.backend,
            label=service.label,
            device=options.device,
            transport=options.transport,
            threads=options.threads,
            requests=requests,
            start_s=service.started_s,
        )
        probes = _probes(folder, key, service, options, found)
        try:
            with service.client() as client:
                _serial(client, image, requests, probes, found, progress)
                _pipelined(client, image, requests, options, found)
        finally:
            for probe in probes.values():
                probe.close()
    _published(folder, image, options, key, insecure, published, found, progress)
    use = service.bundle.head_engine.name
    _predicted(folder, found, use == "torch" and bool(service.bundle.optimisation.switches), use)
    return found


def _probes(
    folder: Path, key: bytes, service: Service, options: ServeOptions, found: Measured
) -> Mapping[str, Probe | OrtProbe]:
    """Workers that run the whole model, inside and outside."""
    head_part, tail_part = parts_of(folder)
    if head_part.seal == "gramine":
        found.notes.append("no whole-model times: only Gramine can open the head's weights")
        return {}
    if head_part.engine == "ort":
        return _by_ort(folder, key, service, options, found)
    if tail_part.engine == "ort":
        found.notes.append("no whole-model times: head and tail have engines of their own")
        return {}
    if service.bundle.optimisation.switches:
        found.notes.append("the whole model runs with the head's optimisations too")
    tail = load_program(folder / "tail", tail_part, None)
    head = load_program(folder / "head", head_part, key)
    whole: Program = join(head, tail)
    at_cut = [len(head.steps) - 1]
    (layout,) = head_part.inputs
    places = {INSIDE: (service.backend, "cpu"), OUTSIDE: ("native", options.device)}
    probes: dict[str, Probe] = {}
    with contextlib.ExitStack() as started:
        for name, (backend, device) in places.items():
            probe = Probe(
                whole,
                at_cut,
                layout.at(1),
                backend=backend,
                threads=options.threads,
                device=device,
                sealed=True,
            )
            probes[name] = started.enter_context(probe)
        started.pop_all()
    return probes


def _by_ort(
    folder: Path, key: bytes, service: Service, options: ServeOptions, found: Measured
) -> Mapping[str, Probe | OrtProbe]:
    """The same by ONNX Runtime, the tail too."""
    head_part, tail_part = parts_of(folder)
    (layout,) = head_part.inputs
    try:
        if tail_part.engine == "ort":
            tail = weights_of(folder / "tail", tail_part, None)
        else:
            program = load_program(folder / "tail", tail_part, None)
            given = [torch.zeros(t.shape, dtype=DTYPES[t.dtype]) for t in tail_part.inputs]
            level = service.bundle.head_engine.level
            tail = optimised(lowered(program, given, head_part.limits.batch > 1), level)
        whole = joined(weights_of(folder / "head", head_part, key), tail)
    except ExportError as error:
        found.notes.append(f"no whole-model times: {error}")
        return {}
    found.notes.append("the whole model runs by ONNX Runtime too, on the processor")
    probes: dict[str, OrtProbe] = {}
    with contextlib.ExitStack() as started:
        for name, backend in ((INSIDE, service.backend), (OUTSIDE, "native")):
            probe = OrtProbe(whole, layout.at(1), backend=backend, threads=options.threads)
            probes[name] = started.enter_context(probe)
        started.pop_all()
    return probes


def _serial(
    client: Client,
    image: bytes,
    requests: int,
    probes: Mapping[str, Probe | OrtProbe],
    found: Measured,
    progress: Callable[[str, float], None],
) -> None:
    answers: list[Answer] = []
    whole: dict[str, list[float]] = {name: [] for name in probes}
    parts: dict[str, list[float]] = {name: [] for name in probes}
    for i in range(requests + WARM_UP):
        answer = client.classify(image)
        if i >= WARM_UP:
            answers.append(answer)
        if i % EVERY == 0:
            for name, probe in probes.items():
                (at_cut,), end = probe.once()
                if i >= WARM_UP:
                    whole[name].append(end)
                    parts[name].append(at_cut if name == INSIDE else end - at_cut)
        progress("requests", (i + 1) / (requests + WARM_UP))
    columns = {s: [a.times[s] for a in answers] for s in STAGES}
    columns["split"] = [a.times["head"] + a.times["hand-off"] + a.times["tail"] for a in answers]
    columns["inside"] = [a.times["inside"] for a in answers]
    columns["client"] = [a.seconds for a in answers]
    found.stages = {name: _percentiles(values) for name, values in columns.items()}
    compute = ("preprocess", "head", "tail")
    beyond = [a.seconds - sum(a.times[s] for s in compute) for a in answers]
    found.overhead_ms = _percentiles(beyond)["p50"]
    found.baselines = {name: _percentiles(values)["p50"] for name, values in whole.items()}
    if parts:
        found.predicted_ms = sum(_percentiles(values)["p50"] for values in parts.values())


def _pipelined(
    client: Client, image: bytes, requests: int, options: ServeOptions, found: Measured
) -> None:
    """Keep the pipe full: head works on one image while the tail works on the one before."""
    depth = min(options.queue, options.in_flight + 2)
    under_way: list[int] = []
    times: list[dict[str, float]] = []
    begun = time.perf_counter()
    for _ in range(requests):
        if len(under_way) == depth:
            times.append(client.collect(under_way.pop(0)).times)
        under_way.append(client.submit(image))
    times += [client.collect(number).times for number in under_way]
    rate = requests / (time.perf_counter() - begun)
    head = _percentiles([t["preprocess"] + t["head"] for t in times])["p50"]
    tail = _percentiles([t["tail"] for t in times])["p50"]
    found.pipelined = {
        "requests_per_s": rate,
        "head_stage_ms": head,
        "tail_stage_ms": tail,
        "bound_per_s": 1e3 / max(head, tail),
        "share_of_bound": rate * max(head, tail) / 1e3,
    }


def _published(
    folder: Path,
    image: bytes,
    options: ServeOptions,
    key: bytes,
    insecure: bool,
    count: int,
    found: Measured,
    progress: Callable[[str, float], None],
) -> None:
    """A fresh head process for each request; the tail's own start is not counted."""
    times = []
    for i in range(count):
        progress("the published way", i / count)
        fresh = replace(options, transport="file", port=0)
        with Service(folder, fresh, key=key, insecure=insecure) as service:
            with service.client() as client:
                answer = client.classify(image)
            times.append(service.head_started_s + answer.seconds)
    if times:
        found.baselines["published"] = _percentiles(times)["p50"]


def _predicted(folder: Path, found: Measured, switched: bool, engine: str) -> None:
    latency = SplitConfig.read(folder / SPLIT).latency_ms
    if latency is None:
        found.predicted_ms = None
        return
    measured = found.stages["split"]["p50"]
    if found.predicted_ms is not None:
        found.predicted_ms += latency.handoff.ms
        found.predicted_error = (measured - found.predicted_ms) / measured
    where = (latency.enclave.backend, latency.accelerator.backend, latency.threads)
    here = (found.backend, found.device, found.threads)
    if where != here:
        found.notes.append(
            f"nothing of find's to compare: it measured {where[0]} and {where[1]} with {where[2]} "
            f"thread(s), this is {here[0]} and {here[1]} with {here[2]}"
        )
        return
    if latency.engine != engine:
        found.notes.append(
            f"nothing of find's to compare: it timed the head by {latency.engine}, this is {engine}"
        )
        return
    if switched:
        found.notes.append("find timed the head without its optimisations")
    found.found_ms = latency.total.ms
    found.found_error = (measured - latency.total.ms) / measured


def _percentiles(seconds: list[float]) -> dict[str, float]:
    shares = torch.tensor([0.5, 0.95, 0.99], dtype=torch.float64)
    ranks = torch.quantile(torch.tensor(seconds, dtype=torch.float64), shares)
    return {n: float(v) * 1e3 for n, v in zip(("p50", "p95", "p99"), ranks, strict=True)}
