"""Profile all cuts of a layer graph, and check the prediction for one of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..config import Taken
from ..enclave_runner.lowering.accounting import accounted
from ..enclave_runner.probing import OrtProbe, Probe
from ..enclave_runner.program.cooling import cool
from ..enclave_runner.program.recording import record
from ..errors import ExportError, UsageError
from ..graph.build import Cut, LayerGraph
from ..graph.splitting import split
from . import handoff as _handoff
from .backends import ACCELERATORS, ENCLAVES
from .base import Conditions, CutLatency, Duration, Profile, Verification, WorkerCost, total_of
from .engines import OrtPass, chosen
from .instrumented import Pass, Subject, WorkerPass
from .machine import now, this_machine
from .memory import keep_memory
from .sgx_model import SgxModel
from .statistics import median_and_noise

NO_ENCLAVE = (
    "enclave times were measured on the host without an enclave (native): they say nothing of SGX"
)

NO_SGX = (
    "enclave times were measured inside gramine-direct: Gramine's own costs, but neither SGX's "
    "encrypted memory nor its transitions"
)
NO_GPU = "no GPU: the tail was timed on the host's CPU"
BY_SHARES = (
    "enclave times at cuts are shares of timed passes by ONNX Runtime, by its own account of its "
    "operators; those that are fused across a cut count to the head"
)
HANDOFFS = 4


@contextlib.contextmanager
def one_setting(threads: int) -> Iterator[None]:
    """Run with `threads` compute threads and restore what was there.

    Memory is kept as the runner's workers keep it, from here on.
    """
    if threads < 1:
        raise UsageError(f"`threads` got {threads}; use 1 or more")
    keep_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def profile(
    graph: LayerGraph,
    cuts: Sequence[Cut],
    conditions: Conditions | None = None,
    *,
    progress: Callable[[float], None] | None = None,
) -> Profile:
    """Measure enclave time, hand-off and accelerator time of every cut.

    All cuts come from one instrumented forward pass per repetition on each side; the passes and
    the hand-offs are interleaved, so that a drift of the machine meets all of them alike.

    Args:
        graph: The layer graph.
        cuts: In execution order.
        conditions: Where and how often; None is this process, without an enclave.
        progress: Called with the share done.

    Raises:
        UsageError: A batch that the model does not run at.
    """
    how = conditions or Conditions()
    enclave, accelerator, batch = how.enclave, how.accelerator, how.batch
    repetitions = how.repetitions
    if graph.fixed_batch is not None and batch != graph.fixed_batch:
        raise UsageError(
            f"`batch` got {batch}, but this model runs at batch {graph.fixed_batch} only"
        )
    example = _example(graph, how)
    payloads = sorted({handed_over(c, graph, batch) for c in cuts})
    times: dict[int, list[float]] = {size: [] for size in payloads}
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_setting(how.threads))
        channel = stack.enter_context(_handoff.handoff(max(payloads, default=1)))
        subject = Subject.of(graph, cuts, example)
        engine, why = chosen(subject, how.engine)
        inside: Pass | OrtPass = (
            OrtPass(subject, enclave) if engine == "ort" else ENCLAVES[enclave](subject)
        )
        stack.enter_context(contextlib.closing(inside))
        # On one and the same device a pass is a pass: twice the repetitions, half the noise.
        same = enclave == "native" and accelerator == "cpu" and engine == "torch"
        outside: Pass | OrtPass = inside if same else ACCELERATORS[accelerator](subject)
        for _ in range(how.warmup):
            inside.once(keep=False)
            outside.once(keep=False)
        # A hand-off takes about as long as a pass and varies less.
        every = max(1, how.repetitions // HANDOFFS)
        for i in range(how.repetitions):
            inside.once()
            if not same:
                outside.once()
            for size in payloads if i % every == 0 else ():
                times[size].append(channel.once(size) + _upload(size, accelerator))
            if progress is not None:
                progress((i + 1) / repetitions)
    by = handed_over_by(accelerator)
    handoffs = {size: _duration(samples, by) for size, samples in times.items()}
    at_in, at_out = inside.result(), outside.result()
    latencies = []
    for i, cut in enumerate(cuts):
        head = _duration(at_in.at[:, i], enclave)
        tail = _duration(at_out.end - at_out.at[:, i], accelerator)
        hand = handoffs[handed_over(cut, graph, batch)]
        latencies.append(_latency(head, hand, tail))
    return Profile(
        cuts=latencies,
        full_enclave=_duration(at_in.end, enclave),
        full_accelerator=_duration(at_out.end, accelerator),
        threads=how.threads,
        batch=batch,
        repetitions=how.repetitions,
        warnings=[
            *cautions(enclave, accelerator, subject.reason),
            *([BY_SHARES] if engine == "ort" else []),
            *([f"the head was timed by torch, not ONNX Runtime: {why}"] if why else []),
        ],
        worker=_cost(inside),
        as_traced=subject.reason,
        taken=Taken(machine=this_machine(), at=now()),
        engine=engine,
    )


def _latency(enclave: Duration, handoff: Duration, accelerator: Duration) -> CutLatency:
    total = total_of(enclave, handoff, accelerator)
    return CutLatency(enclave=enclave, handoff=handoff, accelerator=accelerator, total=total)


def _cost(inside: Pass | OrtPass) -> WorkerCost | None:
    if not isinstance(inside, (WorkerPass, OrtPass)):
        return None
    probe = inside.probe
    return WorkerCost(start_s=probe.start_s, load_s=probe.load_s, peak_bytes=probe.peak_bytes)


def cautions(enclave: str, accelerator: str, as_traced: str) -> list[str]:
    """What must be said of times by where they were taken.

    Args:
        enclave, accelerator: Names of backends.
        as_traced: Why the model was not timed as a program; empty where it was.
    """
    warnings = []
    if enclave == "native":
        warnings.append(NO_ENCLAVE)
    if enclave == "gramine-direct":
        warnings.append(NO_SGX)
    if as_traced:
        warnings.append(f"this model cannot be exported, and was timed as traced: {as_traced}")
    if accelerator == "cpu":
        warnings.append(NO_GPU)
    return warnings


def modelled(measured: Profile, graph: LayerGraph, cuts: Sequence[Cut], model: SgxModel) -> Profile:
    """The same profile with enclave times scaled by `model` and labelled so.

    Raises:
        UsageError: The enclave times are SGX's own.
    """
    backend = measured.full_enclave.backend
    if backend == "gramine-sgx":
        raise UsageError(
            f"`sgx-model` got {model.text()!r}, but the enclave times were measured inside SGX and "
            "need no model; leave it out"
        )
    label = model.label(backend)

    def scale(native: Duration, parameters: int, activations: int) -> Duration:
        ms = model.enclave_ms(native.ms, parameters + activations * measured.batch)
        return Duration(ms, native.noise_ms * model.slowdown, "modelled", label)

    latencies = []
    for cut, latency in zip(cuts, measured.cuts, strict=True):
        head = scale(latency.enclave, cut.head_param_bytes, cut.head_peak_activation_bytes)
        latencies.append(_latency(head, latency.handoff, latency.accelerator))
    kept = [w for w in measured.warnings if w not in (NO_ENCLAVE, NO_SGX)]
    return replace(
        measured,
        cuts=latencies,
        full_enclave=scale(measured.full_enclave, graph.param_bytes, graph.peak_activation_bytes),
        warnings=[*kept, f"enclave times are modelled, not measured: {label}"],
    )


def _upload(size: int, accelerator: str) -> float:
    """Seconds to bring a payload onto the GPU; 0 where the tail runs on the host."""
    if accelerator != "cuda":
        return 0.0
    payload = torch.zeros(size, dtype=torch.uint8)
    start = time.perf_counter()
    payload.to("cuda")
    torch.cuda.synchronize()
    return time.perf_counter() - start


def handed_over(cut: Cut, graph: LayerGraph, batch: int) -> int:
    """Bytes that cross at `cut` for a batch."""
    return cut.payload_bytes * batch // max(1, graph.inputs[0].shape[0])


def handed_over_by(accelerator: str) -> str:
    """How the hand-off was measured, with a tail on `accelerator`."""
    return _handoff.BACKEND + (" + copy to the GPU" if accelerator == "cuda" else "")


def _duration(seconds: Sequence[float] | np.ndarray, backend: str) -> Duration:
    median, noise = median_and_noise(list(seconds))
    return Duration(median * 1e3, noise * 1e3, "measured", backend)


def verify(
    graph: LayerGraph, cut: Cut, profiled: CutLatency, conditions: Conditions | None = None
) -> Verification:
    """Run head, hand-off and tail of `cut` for real and hold the sum against the prediction.

    Args:
        graph: The layer graph.
        cut: Where it is split.
        profiled: What the profile had said; measured, not modelled.
        conditions: Those of the profile.
        runs: Kept runs of the split.
    """
    how = conditions or Conditions()
    enclave, accelerator = how.enclave, how.accelerator
    example = _example(graph, how)
    device = "cuda" if accelerator == "cuda" else "cpu"
    size = handed_over(cut, graph, how.batch)
    real: list[float] = []
    hands: list[float] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_setting(how.threads))
        channel = stack.enter_context(_handoff.handoff(size))
        subject = Subject.of(graph, [cut], example)
        engine, _ = chosen(subject, how.engine)
        inside: Pass | OrtPass = (
            OrtPass(subject, enclave) if engine == "ort" else ENCLAVES[enclave](subject)
        )
        stack.enter_context(contextlib.closing(inside))
        outside = stack.enter_context(contextlib.closing(ACCELERATORS[accelerator](subject)))
        head, tail, boundary = _both(graph, cut, example, device, (enclave, engine))
        stack.callback(head.close)
        for i in range(how.warmup + how.repetitions):
            keep = i >= how.warmup
            inside.once(keep=keep)
            outside.once(keep=keep)
            hand = channel.once(size) + _upload(size, accelerator)
            spent = head.once() + channel.once(size)
            start = time.perf_counter()
            with torch.inference_mode():
                tail(*(t.to(device) for t in boundary))
            if device == "cuda":
                torch.cuda.synchronize()
            if keep:
                real.append(spent + time.perf_counter() - start)
                hands.append(hand)
    at_in, at_out = inside.result(), outside.result()
    predicted = (
        np.median(at_in.at[:, 0]) + np.median(hands) + np.median(at_out.end - at_out.at[:, 0])
    )
    return Verification(
        predicted_ms=float(predicted) * 1e3,
        measured_ms=float(np.median(real)) * 1e3,
        profiled_ms=profiled.total.ms,
    )


class _Head:
    """The head on its own: in this process, or in a worker inside Gramine."""

    def __init__(self, run: Callable[[], float], close: Callable[[], None]) -> None:
        self.once, self.close = run, close


def _both(
    graph: LayerGraph, cut: Cut, example: torch.Tensor, device: str, where: tuple[str, str]
) -> tuple[_Head, Callable[..., Any], tuple[torch.Tensor, ...]]:
    """Head, tail and the boundary tensors between them, as the runner would run them.

    `where`: the enclave's backend and the engine inside.
    """
    enclave, engine = where
    head, tail = split(graph, cut)
    with torch.inference_mode():
        boundary = head(example)
    try:
        first = record(head, [example], False)
        after = record(tail, [t.clone() for t in boundary], False)
    except ExportError:
        if enclave != "native":
            raise
        return _Head(_timed(head, example), lambda: None), tail.to(device), boundary
    after.load(after.tensors, device)
    threads = torch.get_num_threads()
    if engine == "ort":
        by_ort = OrtProbe(
            accounted(first, example, False, []), example.shape, backend=enclave, threads=threads
        )
        return _Head(lambda: by_ort.once()[1], by_ort.close), after, boundary
    if enclave == "native":
        return _Head(_timed(first, example), lambda: None), after, boundary
    probe = Probe(first, [], example.shape, backend=enclave, threads=threads)
    return _Head(lambda: probe.once()[1], probe.close), after, boundary


def _timed(run: Callable[..., Any], example: torch.Tensor) -> Callable[[], float]:
    def once() -> float:
        cool()
        start = time.perf_counter()
        with torch.inference_mode():
            run(example)
        return time.perf_counter() - start

    return once


def _example(graph: LayerGraph, how: Conditions) -> torch.Tensor:
    generator = torch.Generator().manual_seed(how.seed)
    return torch.rand(how.batch, *graph.inputs[0].shape[1:], generator=generator)
