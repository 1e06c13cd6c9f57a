"""A profile as a file: made where a split will run, read wherever cuts are attacked.

It holds every cut of one layer graph, and is bound to that graph by its hash: operators, settings,
shapes and names of nodes. Reading is strict and bounded; nothing in the file can run code, and what
must be said of its times follows from the backends that it names, not from text in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from ..cache import written_whole
from ..config import Taken
from ..errors import ConfigError
from ..graph.build import Cut, LayerGraph
from ..identity.network import graph_hash, of_this_scheme
from .base import Conditions, CutLatency, Duration, Profile, WorkerCost, total_of
from .profile import cautions, handed_over, handed_over_by

SCHEMA: Literal[1] = 1
KIND: Literal["partopt profile"] = "partopt profile"
MAX_BYTES = 32 << 20
MOST_CUTS = 20_000
_MOST_MS = 1e9  # 11 days
_MOST_BYTES = 1 << 50

Name = Annotated[str, Field(min_length=1, max_length=1000)]
Bytes = Annotated[int, Field(ge=0, le=_MOST_BYTES)]
Count = Annotated[int, Field(ge=1, le=1 << 20)]
Positive = Annotated[float, Field(gt=0, le=_MOST_MS)]
NotNegative = Annotated[float, Field(ge=0, le=_MOST_MS)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True, frozen=True)


class Span(_Record):
    """A median over repetitions and its standard error, milliseconds. A head of no work takes 0."""

    ms: NotNegative
    noise_ms: NotNegative


class Whole(_Record):
    """The same of a whole model, which takes some time."""

    ms: Positive
    noise_ms: NotNegative


class Worker(_Record):
    """What the worker inside Gramine cost besides the passes: seconds, and peak bytes."""

    start_s: NotNegative
    load_s: NotNegative
    peak_bytes: Bytes


class TimedModel(_Record):
    """Which model was timed: its graph decides whom the times fit, the rest is for people."""

    spec: Name
    weights: Annotated[str, Field(max_length=1000)]
    input_shape: Annotated[list[Count], Field(min_length=1, max_length=16)]
    graph_hash: Annotated[str, Field(max_length=200)]


class Timed(_Record):
    """Under which conditions; see `Conditions`."""

    enclave: Literal["native", "gramine-direct", "gramine-sgx"]
    accelerator: Literal["cpu", "cuda"]
    threads: Count
    batch: Count
    repetitions: Count
    warmup: Annotated[int, Field(ge=0, le=1 << 20)]
    seed: Annotated[int, Field(ge=0)]
    engine: Literal["torch", "ort", "auto"] = "torch"


class TimedCut(_Record):
    """A cut: the parts of its latency, the bytes that cross for a batch, the head's memory."""

    name: Name
    payload_bytes: Bytes
    head_param_bytes: Bytes
    head_peak_activation_bytes: Bytes
    enclave: Span
    handoff: Span
    accelerator: Span


class TargetProfile(_Record):
    """Times of every cut of one layer graph on one machine, all of them measured.

    ``as_traced``: why the model was not timed as the runner would run it; empty where it was.
    ``full_enclave`` and ``full_accelerator`` are the whole model on either side. ``worker`` is None
    where the enclave side ran in the profiling process.
    """

    kind: Literal["partopt profile"] = KIND
    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    model: TimedModel
    taken: Taken
    conditions: Timed
    as_traced: Annotated[str, Field(max_length=2000)] = ""
    full_enclave: Whole
    full_accelerator: Whole
    worker: Worker | None = None
    cuts: Annotated[list[TimedCut], Field(min_length=1, max_length=MOST_CUTS)]
    _name: str = PrivateAttr(default="profile")
    _digest: str | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _hangs_together(self) -> TargetProfile:
        names = [cut.name for cut in self.cuts]
        if len(set(names)) < len(names):
            twice = next(n for i, n in enumerate(names) if n in names[:i])
            raise ValueError(f"the cut {twice[:80]!r} comes twice")
        for cut in self.cuts:
            # Medians of parts of the same passes: no part can be longer than the whole.
            if cut.enclave.ms > self.full_enclave.ms:
                raise ValueError(f"the head of {cut.name[:80]!r} takes longer than the whole model")
            if cut.accelerator.ms > self.full_accelerator.ms:
                raise ValueError(f"the tail of {cut.name[:80]!r} takes longer than the whole model")
        return self

    @classmethod
    def of(
        cls,
        graph: LayerGraph,
        cuts: Sequence[Cut],
        measured: Profile,
        how: Conditions,
        *,
        spec: str,
        weights: str,
    ) -> TargetProfile:
        """What was measured of all `cuts` of `graph` under `how`, of the model `spec`."""
        assert measured.taken is not None
        timed = asdict(how)
        return cls(
            model=TimedModel(
                spec=spec[:1000],
                weights=weights[:1000],
                input_shape=list(graph.inputs[0].shape),
                graph_hash=graph_hash(graph),
            ),
            taken=measured.taken,
            conditions=Timed(**{name: timed[name] for name in Timed.model_fields}),
            as_traced=measured.as_traced[:2000],
            full_enclave=Whole(**_span(measured.full_enclave)),
            full_accelerator=Whole(**_span(measured.full_accelerator)),
            worker=None if measured.worker is None else Worker(**asdict(measured.worker)),
            cuts=[
                TimedCut(
                    name=cut.name,
                    payload_bytes=handed_over(cut, graph, how.batch),
                    head_param_bytes=cut.head_param_bytes,
                    head_peak_activation_bytes=cut.head_peak_activation_bytes,
                    enclave=Span(**_span(latency.enclave)),
                    handoff=Span(**_span(latency.handoff)),
                    accelerator=Span(**_span(latency.accelerator)),
                )
                for cut, latency in zip(cuts, measured.cuts, strict=True)
            ],
        )

    def to_json(self) -> str:
        """JSON with stable key order."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1) + "\n"

    def write(self, path: Path) -> None:
        """Write the JSON to `path`, whole or not at all."""
        with written_whole(path) as temporary:
            temporary.write_text(self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> TargetProfile:
        """Read and check a profile file.

        Raises:
            ConfigError: Missing, too large, no whole JSON, another schema, or a wrong value.
        """
        path = Path(path)
        name = f"profile {str(path)!r}"
        if not path.is_file():
            raise ConfigError(f"{name} does not exist; run partopt profile where it will run")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        return cls.parse(data, name)

    @classmethod
    def parse(cls, data: bytes, name: str = "profile") -> TargetProfile:
        """Check the bytes of a profile file; `name` is for messages."""
        if len(data) > MAX_BYTES:
            raise ConfigError(
                f"{name} is larger than {MAX_BYTES} bytes, which is no profile's size"
            )
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{name} is no whole JSON file ({str(error)[:80]}); copy it again, or make it "
                "again with partopt profile"
            ) from None
        if not isinstance(raw, dict) or raw.get("kind") != KIND:
            raise ConfigError(f"{name} was not written by partopt profile; make one with it")
        schema = raw.get("schema")
        if type(schema) is not int or schema != SCHEMA:
            raise ConfigError(
                f"{name} has `schema` {str(schema)[:20]}, this version reads {SCHEMA}; make it "
                "again with this version"
            )
        try:
            found = cls.model_validate(raw)
        except (ValidationError, RecursionError) as error:
            raise ConfigError(f"{name} {_problem(error)}; make it again") from None
        found._name, found._digest = name, hashlib.sha256(data).hexdigest()
        return found

    @property
    def name(self) -> str:
        """What messages call it."""
        return self._name

    @property
    def origin(self) -> Taken:
        """Machine and time, with the file's hash once it was read from one."""
        return self.taken.model_copy(update={"profile": self._digest})

    @property
    def warnings(self) -> list[str]:
        """What must be said of its times."""
        how = self.conditions
        return cautions(how.enclave, how.accelerator, self.as_traced)

    def hold(self, graph: LayerGraph, whose: str = "the model") -> list[Cut]:
        """All cuts of `graph`, in the order of the file's; its hash is that of the file.

        Raises:
            ConfigError: The file is of another graph.
        """
        self.hold_hash(graph_hash(graph), whose, list(graph.inputs[0].shape))
        every = graph.cuts("all")
        batch = self.conditions.batch
        wanted = [(cut.name, handed_over(cut, graph, batch)) for cut in every]
        if wanted != [(cut.name, cut.payload_bytes) for cut in self.cuts]:
            raise ConfigError(
                f"{self.name} does not list the {len(wanted)} cuts that {whose} has; make it again "
                "with partopt profile"
            )
        return every

    def hold_hash(self, wanted: str, whose: str, shape: Sequence[int] | None = None) -> None:
        """Hold the graph's hash against that of `whose`, whose input has `shape`.

        Raises:
            ConfigError: They differ.
        """
        mine = self.model
        if mine.graph_hash == wanted:
            return
        if not of_this_scheme(mine.graph_hash) or not of_this_scheme(wanted):
            why = "their graphs were hashed by different versions of partopt"
        elif shape is not None and mine.input_shape != list(shape):
            why = f"its input is {_by(mine.input_shape)}, not {_by(shape)}"
        else:
            why = "operators, shapes or names of nodes differ"
        raise ConfigError(
            f"{self.name} is of another layer graph ({mine.spec}, made with torch "
            f"{self.taken.machine.torch}) than {whose}: {why}; make it again with partopt profile"
        )

    def times(self, graph: LayerGraph, cuts: Sequence[Cut]) -> Profile:
        """The times of `cuts` of `graph`, as if they had been measured here.

        Raises:
            ConfigError: The file is of another graph.
        """
        at = {cut.node: i for i, cut in enumerate(self.hold(graph))}
        return self.profile([at[cut.node] for cut in cuts])

    def profile(self, which: Sequence[int]) -> Profile:
        """The times of the cuts at these indices."""
        how = self.conditions
        by = handed_over_by(how.accelerator)
        latencies = []
        for cut in (self.cuts[i] for i in which):
            head = _duration(cut.enclave, how.enclave)
            hand = _duration(cut.handoff, by)
            tail = _duration(cut.accelerator, how.accelerator)
            total = total_of(head, hand, tail)
            latencies.append(CutLatency(enclave=head, handoff=hand, accelerator=tail, total=total))
        return Profile(
            cuts=latencies,
            full_enclave=_duration(self.full_enclave, how.enclave),
            full_accelerator=_duration(self.full_accelerator, how.accelerator),
            threads=how.threads,
            batch=how.batch,
            repetitions=how.repetitions,
            warnings=self.warnings,
            worker=None if self.worker is None else WorkerCost(**self.worker.model_dump()),
            as_traced=self.as_traced,
            taken=self.origin,
            engine=how.engine,
        )


def _span(duration: Duration) -> dict[str, float]:
    assert duration.basis == "measured"
    return {"ms": duration.ms, "noise_ms": duration.noise_ms}


def _duration(span: Span | Whole, backend: str) -> Duration:
    return Duration(float(span.ms), float(span.noise_ms), "measured", backend)


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "is nested too deeply"
    first: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:120]
    said = str(first["msg"]).removeprefix("Value error, ")
    return f"is wrong at `{where}`: {said.lower()}" if where else f"is wrong: {said}"
