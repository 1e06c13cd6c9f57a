"""The split config: what a run found, as JSON that people, CI and the runner read.

Reading is strict and bounded: an unknown key, a newer schema or a file beyond the size limit is an
error. Nothing in a split config can run code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from .cache import written_whole
from .errors import ConfigError, nearest
from .printable import each, encodable, printable

SCHEMA = 1
MAX_BYTES = 16 << 20

Status = Literal["safe", "screened", "leaks", "undecided", "failed", "not attacked"]
Recommendation = Literal["split", "do not split", "not compared"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _encodable(cls, value: Any) -> Any:
        """Bytes of file names that are no UTF-8 become escapes: no encoder would take them."""
        return each(value, encodable)


class Tensor(_Strict):
    """A boundary tensor, at the recorded batch size."""

    name: str
    shape: list[int]
    dtype: str
    bytes: int


class PreprocessingInfo(_Strict):
    """How images become the model's input."""

    input_size: int
    resize: int
    mean: list[float]
    std: list[float]
    interpolation: str
    source: str


class ModelInfo(_Strict):
    """Which model, which weights, which input, and how it was traced."""

    spec: str
    weights: str
    weights_hash: str
    random_weights: bool
    graph_hash: str
    traced_by: str
    input_shape: list[int]
    input_dtype: str
    preprocessing: PreprocessingInfo
    concrete_args: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    leaf_modules: list[str] = Field(default_factory=list)


class Time(_Strict):
    """Milliseconds with their origin."""

    ms: float
    noise_ms: float
    basis: Literal["measured", "modelled"]
    backend: str


class Latency(_Strict):
    """The three parts of a cut's latency and their sum."""

    enclave: Time
    handoff: Time
    accelerator: Time
    total: Time


class Verified(_Strict):
    """The chosen cut run for real; ``error`` is (measured - predicted) / measured.

    The prediction is made anew, interleaved with the real runs; ``profiled_ms`` is the profile's.
    """

    predicted_ms: float
    measured_ms: float
    profiled_ms: float
    error: float


class Worker(_Strict):
    """What the profiled worker inside Gramine cost besides the passes."""

    start_s: float
    load_s: float
    peak_bytes: int


class Machine(_Strict):
    """A machine that times were taken on, as it describes itself.

    ``name`` is its host name, or what `partopt profile --machine` called it; ``sgx``: whether it
    has an SGX device. ``memory_bytes`` is None where the system does not say.
    """

    name: str = Field(min_length=1, max_length=255)
    system: str = Field(max_length=255)
    cpu: str = Field(max_length=255)
    cores: int = Field(ge=1, le=1 << 20)
    memory_bytes: int | None = Field(default=None, ge=1, le=1 << 60)
    gpu: str | None = Field(default=None, max_length=255)
    sgx: bool
    gramine: str = Field(default="", max_length=255)
    torch: str = Field(max_length=64)
    partopt: str = Field(max_length=64)


class Taken(_Strict):
    """On which machine times were taken, and when (UTC).

    ``profile`` is the SHA-256 of the profile file that they came from; None where the run that
    wrote this took them itself.
    """

    machine: Machine
    at: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    profile: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


def label(taken: Taken | None) -> str:
    """Machine and time in a few words."""
    if taken is None:
        return "a machine that an older partopt did not name"
    return printable(f"{taken.machine.name}, {taken.at}")


class ChosenLatency(Latency):
    """Latency of the chosen cut beside the whole model in the enclave."""

    full_enclave: Time
    full_accelerator: Time
    threads: int
    batch: int
    repetitions: int
    engine: Literal["torch", "ort"] = "torch"
    verified: Verified | None = None
    worker: Worker | None = None


class CutInfo(_Strict):
    """The chosen cut; the named node is the last one in the enclave."""

    name: str
    boundary: list[Tensor]
    aliases: list[str]
    payload_bytes: int
    head_flops: int
    tail_flops: int
    head_param_bytes: int
    head_peak_activation_bytes: int


class SideScore(_Strict):
    """What an attacker reached where pictures were compared at `side` pixels."""

    side: int
    raw: float
    score: float
    low: float
    high: float


class Attack(_Strict):
    """What one attacker reached at one cut. ``score`` and its interval are on the run's scale.

    Pictures are compared at several ``sides``; ``score`` is the largest of their means, ``low`` and
    ``high`` the largest ends. ``over`` test images reach the threshold on their own, at most the
    share ``over_high`` of all images (Clopper-Pearson, 95 %); the ``largest`` own score. In
    ``retrieved`` test images the true photo is the one among all that the reconstruction picks out,
    in at most ``retrieved_high`` of all. ``rising``: the attack was still getting better when its
    budget ended. ``trainings`` are the scores of several seeds, where there were some: the interval
    then covers them too. Results of before 0.3 have one side, which is not listed.
    ``key`` is the content hash under which the trial and its pictures are stored.
    """

    attacker: str
    settings: str
    outcome: Literal["full budget", "stopped at proof", "failed"]
    ssim_raw: float | None = None
    ssim_p95: float | None = None
    ssim_max: float | None = None
    score: float | None = None
    low: float | None = None
    high: float | None = None
    rising: bool = False
    trainings: list[float] = Field(default_factory=list)
    sides: list[SideScore] = Field(default_factory=list)
    over: int | None = None
    over_high: float | None = None
    largest: float | None = None
    retrieved: int | None = None
    retrieved_high: float | None = None
    image_steps: int = 0
    seconds: float = 0.0
    note: str = ""
    key: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")


class CurvePoint(_Strict):
    """What an attacker reached with so many training images."""

    images: int = Field(ge=1)
    value: float
    low: float
    high: float


class Curve(_Strict):
    """What ``attacker`` may reach with as many ``images`` as the adversary has: at most ``high``.

    Extrapolated over the logarithm of the number of images, at the ``side`` where it is largest,
    with the lead that the strongest attacker had on this one. ``settles``: training images with
    which a run would see whether the cut leaks; None where the bound stays below the threshold.
    """

    attacker: str
    side: int
    images: int = Field(ge=1)
    value: float
    high: float
    settles: int | None = None
    accelerating: bool = False
    points: list[CurvePoint] = Field(min_length=3)

    @model_validator(mode="after")
    def _bounds_all_points(self) -> Curve:
        if self.high < max(p.high for p in self.points):
            raise ValueError("the bound of a learning curve is below what was measured")
        return self


class CutRow(_Strict):
    """One line of the table. ``suffix_high`` is None where a later result is missing.

    ``safe`` is True where ``status`` is: the evidence certifies the cut, it did not only screen it.
    ``swept``: the cut was not among those asked for; a sweep found that it
    may leak, and it was attacked like the others. It is never the answer. ``unplaced``: why the
    attacks that ran settle nothing there but a leak; empty where they do. ``curve``: what attacks
    would reach with more images, where that was asked. ``covered_by``: the earlier cut that was
    attacked in full and stands for this one, where only cheap attackers ran; empty where they all
    did. ``score``, ``low`` and ``high`` are what was measured here all the same.
    """

    name: str
    aliases: list[str]
    stage: bool
    payload_bytes: int
    head_flops: int
    head_layers: int
    head_param_bytes: int
    head_peak_activation_bytes: int
    ssim_raw: float | None
    score: float | None
    low: float | None
    high: float | None
    suffix_score: float | None
    suffix_high: float | None
    safe: bool
    status: Status
    reason: str
    attacks: list[Attack]
    latency_ms: Latency
    swept: bool = False
    unplaced: str = ""
    covered_by: str = ""
    curve: Curve | None = None

    @property
    def may_be_answer(self) -> bool:
        """Whether it was asked for, and attacked in full itself."""
        return not self.swept and not self.covered_by


class SweptCut(_Strict):
    """A cut that was not attacked in full: what cheap attackers reached there."""

    name: str
    tensors: int
    payload_bytes: int
    attacks: list[Attack]


class Lead(_Strict):
    """How far the whole panel was ahead of a cheap attacker, on the cuts attacked in full, at most.

    ``lead`` is the largest difference of the upper ends, ``proportion`` their largest ratio,
    ``over`` and ``retrieved`` the largest difference of the images that pass the threshold or are
    picked out, ``largest`` that of the largest score of one image; None where nobody looked.
    """

    lead: float = Field(ge=0.0)
    proportion: float = Field(default=1.0, ge=1.0)
    over: int | None = Field(default=None, ge=0)
    retrieved: int | None = Field(default=None, ge=0)
    largest: float | None = Field(default=None, ge=0.0)


class Sweep(_Strict):
    """Cheap attackers on every cut of the graph from the chosen one to the end.

    How far the whole panel was ahead of them on the cuts that were attacked in full says what they
    may miss. A cut where one of its leads would carry `sketch` to the threshold, or past what is
    allowed of single images, is attacked in full, and is then one of the table's rows; the others
    are listed here. Rows for which an earlier one stands are listed too, and a small ``decoder``,
    with a lead of its own, went over them.
    """

    attackers: list[str]
    sketch: Lead
    decoder: Lead | None = None
    cuts: list[SweptCut]

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, data: Any) -> Any:
        """Before 0.3 two numbers said how far the panel was ahead."""
        if isinstance(data, dict) and "lead" in data and "sketch" not in data:
            known = {k: data[k] for k in ("lead", "proportion") if k in data}
            return {k: v for k, v in data.items() if k not in known} | {"sketch": known}
        return data


class Panel(_Strict):
    """An attacker with all its settings."""

    name: str
    settings: str


class Privacy(_Strict):
    """The question that was asked of every cut, and the chosen cut's answer.

    ``evidence`` is at most what ``budget`` stands for: less with fewer images, a reduced panel or
    a lower resolution than the budget's. ``tuned`` is how many settings of each attacker were tried
    at the cut and at the one before it. ``shortfall`` is what the run had too little of to certify
    a cut, or to screen one. ``high`` is the upper end at the chosen cut itself, ``suffix_high`` the
    largest of this and all later cuts, swept ones included. ``sides`` are those at which pictures
    were compared, in pixels; empty in results of before 0.3, which had ``resolution`` alone.
    ``worst_share`` and ``worst_retrieval`` are what was allowed of single images; None allows any.
    ``adversary_images``: how many the adversary is taken to have; None where nothing was
    extrapolated.
    """

    protocol: Literal["strict", "paper"] = "strict"
    threshold: float
    scale: Literal["corrected", "raw"]
    rule: str
    budget: Literal["quick", "standard", "full"]
    evidence: Literal["screening", "standard", "full"]
    floor: float
    floor_p95: float
    ssim: str
    resolution: int
    sides: list[int] = Field(default_factory=list)
    data: str
    data_hash: str
    images: dict[str, int]
    skipped: list[str]
    attackers: list[Panel]
    tuned: int = 0
    worst_share: float | None = None
    worst_retrieval: float | None = None
    adversary_images: int | None = None
    shortfall: str = ""
    score: float | None = None
    low: float | None = None
    high: float | None = None
    suffix_high: float | None = None
    attacks: list[Attack] = Field(default_factory=list)

    @property
    def screens(self) -> bool:
        """Whether this is a screening, which certifies no cut, whatever its rows say."""
        return self.evidence == "screening" or self.budget == "quick" or self.protocol == "paper"

    @property
    def missing(self) -> str:
        """Of a cut that is not certified: what could certify it, as a clause.

        Results of older versions have no ``shortfall``.
        """
        if self.shortfall:
            return self.shortfall
        strict = "--protocol strict " if self.protocol == "paper" else ""
        return f"this was a screening; find with {strict}--budget standard could certify it"


class Search(_Strict):
    """What the search cost."""

    trials_run: int
    trials_reused: int
    image_steps: int
    attack_seconds: float
    study: str
    storage: str


class SplitConfig(_Strict):
    """A run's result. ``cut`` is None where no cut is safe.

    ``recommendation`` is ``do not split`` where no safe cut is faster, beyond noise, than the whole
    model in the enclave, and ``not compared`` where the times cannot say; ``cut`` is the fastest
    safe cut all the same. Results of older versions have none.

    ``mrenclave`` is the measurement of the head's enclave, once a bundle was signed. ``taken`` says
    on which machine and when the times were taken; results of older versions do not say.
    """

    schema_: int = Field(default=SCHEMA, alias="schema")
    model: ModelInfo
    cut: CutInfo | None
    latency_ms: ChosenLatency | None
    full_enclave_ms: Time
    privacy: Privacy
    cuts: list[CutRow]
    search: Search
    seed: int
    versions: dict[str, str]
    warnings: list[str]
    recommendation: Recommendation | None = None
    recommended_because: str = ""
    sweep: Sweep | None = None
    command: str = ""
    mrenclave: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    taken: Taken | None = None

    @model_validator(mode="after")
    def _screened_is_not_safe(self) -> SplitConfig:
        """Older versions called cuts safe that they had only screened: such rows are screened."""
        rows = [(row, self._status(row)) for row in self.cuts]
        self.cuts = [
            row
            if (row.status, row.safe) == (status, status == "safe")
            else row.model_copy(update={"status": status, "safe": status == "safe"})
            for row, status in rows
        ]
        return self

    def _status(self, row: CutRow) -> Status:
        return "screened" if row.status == "safe" and self.privacy.screens else row.status

    @property
    def standing(self) -> Status | None:
        """What the chosen cut is: ``safe`` only where certified; None where there is no cut.

        ``not attacked`` where the table does not list it.
        """
        if self.cut is None:
            return None
        row = next((r for r in self.cuts if r.name == self.cut.name), None)
        return "not attacked" if row is None else self._status(row)

    def to_json(self) -> str:
        """JSON with stable key order."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=2) + "\n"

    def shown(self) -> SplitConfig:
        """The same with every text printable: as people are shown it, not for reading it back."""
        return SplitConfig.model_validate(each(self.model_dump(by_alias=True), printable))

    def write(self, path: Path) -> None:
        """Write the JSON to `path`, whole or not at all."""
        with written_whole(path) as temporary:
            temporary.write_text(self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> SplitConfig:
        """Read and check a split config.

        Raises:
            ConfigError: Missing, too large, no JSON, a newer schema, or an unknown or wrong key.
        """
        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"split config {str(path)!r} does not exist; run partopt find first")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(
                f"split config {str(path)!r} has {size} bytes; at most {MAX_BYTES} are read"
            )
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, data: bytes, name: str = "split config") -> SplitConfig:
        """Check the bytes of a split config; `name` is for messages."""
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{name} has {len(data)} bytes; at most {MAX_BYTES} are read")
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{name} is no JSON ({str(error)[:80]}); write it again") from None
        if not isinstance(raw, dict):
            raise ConfigError(f"{name} is no JSON object; write it again with partopt find")
        schema = raw.get("schema")
        if not isinstance(schema, int) or isinstance(schema, bool):
            raise ConfigError(f"{name} has no `schema` number; write it again with partopt find")
        if schema != SCHEMA:
            newer = "a newer partopt wrote it" if schema > SCHEMA else "it is of an old version"
            raise ConfigError(
                f"{name} has `schema` {schema}, this version reads {SCHEMA}: {newer}; "
                "update partopt or run find again"
            )
        try:
            return cls.model_validate(raw)
        except (ValidationError, RecursionError) as error:
            raise ConfigError(f"{name} {_first_problem(error, cls)}") from None


def _first_problem(error: Exception, model: type[BaseModel]) -> str:
    if not isinstance(error, ValidationError):
        return "is nested too deeply"
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])[:120]
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])[:80]
        return f"has the unknown key `{where}`{nearest(key, _all_keys(model))}; remove it"
    return f"is wrong at `{where}`: {problem['msg'].lower()} ({error.error_count()} problem(s))"


def _all_keys(model: type[BaseModel]) -> set[str]:
    return set(json.dumps(model.model_json_schema()).replace('"', " ").split()) & {
        name for m in _Strict.__subclasses__() + Latency.__subclasses__() for name in m.model_fields
    }


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a split config."""
    return SplitConfig.model_json_schema(by_alias=True)
