"""What a profile is: durations that say how they were come by, and under which conditions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ..arguments.choices import EngineName, one_of
from ..arguments.numbers import whole
from ..config import Taken

Basis = Literal["measured", "modelled"]


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What times are measured under.

    Attributes:
        enclave, accelerator: Names of backends, already resolved.
        threads: Compute threads on both sides.
        batch: Images a run, on both sides.
        repetitions: Kept runs; medians are reported.
        warmup: Runs before those.
        seed: For the input's values.
        engine: What runs the head: ``torch``, ``ort``, or ``auto``: the faster of both.

    Raises:
        UsageError: An unknown engine, a number below 1, or below 0 for `warmup`.
    """

    enclave: str = "native"
    accelerator: str = "cpu"
    threads: int = 1
    batch: int = 1
    repetitions: int = 20
    warmup: int = 3
    seed: int = 0
    engine: str = "torch"

    def __post_init__(self) -> None:
        one_of("engine", self.engine, EngineName)
        whole("threads", self.threads, 1)
        whole("batch", self.batch, 1)
        whole("repetitions", self.repetitions, 1)
        whole("warmup", self.warmup, 0)


@dataclass(frozen=True)
class Duration:
    """A time with its origin.

    Attributes:
        ms: Median over repetitions, in milliseconds.
        noise_ms: Standard error of that median, from the spread of the repetitions.
        basis: ``"measured"`` or ``"modelled"``.
        backend: Where it was measured, or what was modelled from what.
    """

    ms: float
    noise_ms: float
    basis: Basis
    backend: str

    def plus(
        self, ms: float, *, basis: Basis | None = None, backend: str | None = None
    ) -> Duration:
        """The same with `ms` more."""
        return replace(
            self,
            ms=self.ms + ms,
            basis=basis or self.basis,
            backend=backend or self.backend,
        )


@dataclass(frozen=True, kw_only=True)
class CutLatency:
    """Predicted latency of one cut, for one batch: the three parts and their sum."""

    enclave: Duration
    handoff: Duration
    accelerator: Duration
    total: Duration


def total_of(*parts: Duration) -> Duration:
    """The sum of independent parts; modelled if any part is."""
    return Duration(
        ms=sum(p.ms for p in parts),
        noise_ms=sum(p.noise_ms**2 for p in parts) ** 0.5,
        basis="modelled" if any(p.basis == "modelled" for p in parts) else "measured",
        backend=" + ".join(dict.fromkeys(p.backend for p in parts)),
    )


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The chosen cut run for real: head, hand-off and tail, against the prediction.

    ``predicted_ms`` is made from instrumented passes and hand-offs interleaved with the real runs,
    so that the error is the method's; ``profiled_ms`` is what the profile had said, and differs
    where the machine's speed has drifted since.
    """

    predicted_ms: float
    measured_ms: float
    profiled_ms: float

    @property
    def error(self) -> float:
        """(measured - predicted) / measured."""
        return (self.measured_ms - self.predicted_ms) / self.measured_ms


@dataclass(frozen=True, kw_only=True)
class WorkerCost:
    """What a worker inside Gramine costs besides the passes: seconds, and peak bytes."""

    start_s: float
    load_s: float
    peak_bytes: int


@dataclass(kw_only=True)
class Profile:
    """Latency of every cut, in the order of the cuts, and of the whole model in the enclave.

    ``worker`` is None where the enclave side ran in this process. ``as_traced`` is why the model
    was timed as it was traced; empty where it was timed as the runner would run it. ``taken`` says
    on which machine and when; None where nobody knows. ``engine`` is what ran the enclave's side.
    """

    cuts: list[CutLatency]
    full_enclave: Duration
    full_accelerator: Duration
    threads: int
    batch: int
    repetitions: int
    warnings: list[str] = field(default_factory=list)
    worker: WorkerCost | None = None
    as_traced: str = ""
    taken: Taken | None = None
    engine: str = "torch"
