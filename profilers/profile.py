"""Profile all cuts of a layer graph, and check the prediction for one of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from ..errors import UsageError
from ..graph import Cut, LayerGraph
from ..splitting import split
from . import handoff as _handoff
from .backends import ACCELERATORS, ENCLAVES
from .base import CutLatency, Figure, Profile, Verification, total_of
from .sgx_model import SgxModel
from .statistics import median_and_noise

NO_ENCLAVE = (
    "enclave times were measured on the host without an enclave (native): they say nothing of SGX"
)


@contextlib.contextmanager
def one_setting(threads: int) -> Iterator[None]:
    """Run with `threads` compute threads and restore what was there."""
    if threads < 1:
        raise UsageError(f"`threads` got {threads}; use 1 or more")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def profile(
    graph: LayerGraph,
    cuts: Sequence[Cut],
    *,
    enclave: str = "native",
    accelerator: str = "cpu",
    threads: int = 1,
    batch: int = 1,
    repetitions: int = 20,
    warmup: int = 3,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Profile:
    """Measure enclave time, hand-off and accelerator time of every cut.

    All cuts come from one instrumented forward pass per repetition on each side; the passes and
    the hand-offs are interleaved, so that a drift of the machine meets all of them alike.

    Args:
        graph: The layer graph.
        cuts: In execution order.
        enclave, accelerator: Names of backends, already resolved.
        threads: Compute threads on both sides.
        batch: Images a run, on both sides.
        repetitions: Kept runs; medians are reported.
        warmup: Runs before those.
        seed: For the input's values.
        progress: Called with the share done.
    """
    if batch < 1 or repetitions < 1:
        raise UsageError(f"`batch` and `repetitions` got {batch} and {repetitions}; use 1 or more")
    if graph.fixed_batch is not None and batch != graph.fixed_batch:
        raise UsageError(
            f"`batch` got {batch}, but this model runs at batch {graph.fixed_batch} only"
        )
    example = _example(graph, batch, seed)
    payloads = sorted({_payload(c, graph, batch) for c in cuts})
    times: dict[int, list[float]] = {size: [] for size in payloads}
    with one_setting(threads), _handoff.handoff(max(payloads, default=1)) as channel:
        inside = ENCLAVES[enclave](graph, cuts, example)
        # On one and the same device a pass is a pass: twice the repetitions, half the noise.
        same = enclave == "native" and accelerator == "cpu"
        outside = inside if same else ACCELERATORS[accelerator](graph, cuts, example)
        for _ in range(warmup):
            inside.once(keep=False)
            outside.once(keep=False)
        bytes_ = {size: np.ones(size, np.uint8) for size in payloads}
        for i in range(repetitions):
            inside.once()
            if not same:
                outside.once()
            for size in payloads:
                times[size].append(channel.once(bytes_[size]) + _upload(bytes_[size], accelerator))
            if progress is not None:
                progress((i + 1) / repetitions)
    how = _handoff.BACKEND + (" + copy to the GPU" if accelerator == "cuda" else "")
    handoffs = {size: _figure(samples, how) for size, samples in times.items()}
    at_in, at_out = inside.result(), outside.result()
    latencies = []
    for i, cut in enumerate(cuts):
        head = _figure(at_in.at[:, i], enclave)
        tail = _figure(at_out.end - at_out.at[:, i], accelerator)
        hand = handoffs[_payload(cut, graph, batch)]
        latencies.append(CutLatency(head, hand, tail, total_of(head, hand, tail)))
    return Profile(
        cuts=latencies,
        full_enclave=_figure(at_in.end, enclave),
        full_accelerator=_figure(at_out.end, accelerator),
        threads=threads,
        batch=batch,
        repetitions=repetitions,
        warnings=_warnings(enclave, accelerator),
    )


def _warnings(enclave: str, accelerator: str) -> list[str]:
    warnings = []
    if enclave == "native":
        warnings.append(NO_ENCLAVE)
    if accelerator == "cpu":
        warnings.append("no GPU: the tail was timed on the host's CPU")
    return warnings


def modelled(measured: Profile, graph: LayerGraph, cuts: Sequence[Cut], model: SgxModel) -> Profile:
    """The same profile with enclave times scaled by `model` and labelled so."""

    def scale(figure: Figure, parameters: int, activations: int) -> Figure:
        ms = model.enclave_ms(figure.ms, parameters + activations * measured.batch)
        return Figure(ms, figure.noise_ms * model.slowdown, "modelled", model.label())

    latencies = []
    for cut, latency in zip(cuts, measured.cuts, strict=True):
        head = scale(latency.enclave, cut.head_param_bytes, cut.head_peak_activation_bytes)
        total = total_of(head, latency.handoff, latency.accelerator)
        latencies.append(CutLatency(head, latency.handoff, latency.accelerator, total))
    kept = [w for w in measured.warnings if w != NO_ENCLAVE]
    return replace(
        measured,
        cuts=latencies,
        full_enclave=scale(measured.full_enclave, graph.param_bytes, graph.peak_activation_bytes),
        warnings=[*kept, f"enclave times are modelled, not measured: {model.label()}"],
    )


def _upload(payload: np.ndarray, accelerator: str) -> float:
    """Seconds to bring a payload onto the GPU; 0 where the tail runs on the host."""
    if accelerator != "cuda":
        return 0.0
    start = time.perf_counter()
    torch.from_numpy(payload).to("cuda")
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _payload(cut: Cut, graph: LayerGraph, batch: int) -> int:
    return cut.payload_bytes * batch // max(1, graph.inputs[0].shape[0])


def _figure(seconds: Sequence[float] | np.ndarray, backend: str) -> Figure:
    median, noise = median_and_noise(list(seconds))
    return Figure(median * 1e3, noise * 1e3, "measured", backend)


def verify(
    graph: LayerGraph,
    cut: Cut,
    profiled: CutLatency,
    *,
    enclave: str = "native",
    accelerator: str = "cpu",
    threads: int = 1,
    batch: int = 1,
    repetitions: int = 15,
    seed: int = 0,
) -> Verification:
    """Run head, hand-off and tail of `cut` for real and hold the sum against the prediction.

    `profiled` must be a measured prediction, not a modelled one.
    """
    example = _example(graph, batch, seed)
    head, tail = split(graph, cut)
    device = "cuda" if accelerator == "cuda" else "cpu"
    tail = tail.to(device)
    size = _payload(cut, graph, batch)
    real: list[float] = []
    hands: list[float] = []
    with one_setting(threads), _handoff.handoff(size) as channel, torch.inference_mode():
        inside = ENCLAVES[enclave](graph, [cut], example)
        outside = ACCELERATORS[accelerator](graph, [cut], example)
        blank = np.ones(size, np.uint8)
        for i in range(repetitions + 3):
            inside.once(keep=i >= 3)
            outside.once(keep=i >= 3)
            hand = channel.once(blank) + _upload(blank, accelerator)
            start = time.perf_counter()
            boundary = head(example)
            for tensor in boundary:
                channel.once(tensor.contiguous().view(-1).view(torch.uint8).numpy())
            tail(*(t.to(device) for t in boundary))
            if device == "cuda":
                torch.cuda.synchronize()
            if i >= 3:
                real.append(time.perf_counter() - start)
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


def _example(graph: LayerGraph, batch: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, *graph.inputs[0].shape[1:], generator=generator)
