"""The published study on one model: the published protocol and ours on the same cuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ..arguments.choices import AcceleratorName, BudgetName, EnclaveName, ProtocolName, known_names
from ..config import Attack, CutRow, SplitConfig, Taken
from ..errors import UsageError
from ..graph.build import Cut, LayerGraph
from ..images import ton_iot
from ..images.load import GENERATED
from ..models.load import load
from ..models.request import ModelRequest
from ..optimizer.budgets import BUDGETS, Budget, budget_of
from ..optimizer.find import find_cut
from ..optimizer.protocols import PUBLISHED_BUDGETS
from ..optimizer.requests import CutChoice, Effort, FindRequest
from ..optimizer.watcher import Silent, Watcher
from ..profilers.backends import pick_accelerator
from ..profilers.base import Profile
from ..profilers.profile import NO_ENCLAVE, NO_GPU, NO_SGX, modelled, profile
from ..profilers.sgx_model import SgxModel
from ..profilers.target import TargetProfile
from .published import HEADLINES, PHOTOS, TELEMETRY, Published, ratio, share

REDUCED_SIZE = 96  # side of the model's input for attacks without a GPU, pixels


@dataclass(frozen=True)
class Point:
    """One published cut point, as measured here.

    Times are milliseconds for one image at the model's own input size. ``*_key`` name the stored
    pictures. ``strict_attacker`` reached ``strict_raw`` and ``strict_score``.
    """

    number: int
    cut: str
    layers: int
    payload_bytes: int
    enclave_ms: float
    handoff_ms: float
    accelerator_ms: float
    total_ms: float
    share: float | None
    ratio: float | None
    cgan_ssim: float | None
    cgan_low: float | None
    cgan_high: float | None
    cgan_key: str
    published_safe: bool
    strict_attacker: str
    strict_raw: float | None
    strict_score: float | None
    strict_low: float | None
    strict_high: float | None
    strict_key: str
    strict_status: str
    strict_reason: str


@dataclass(frozen=True)
class Study:
    """One model on one kind of data.

    Attributes:
        kind: The paper's data that stands beside it, ``ImageNet`` or ``TON_IoT``.
        points: In execution order.
        chosen: Number of the first point that the published rule calls safe, or None.
        strict_chosen: Number of the first one that the strict panel calls safe, or None.
        full_ms: The whole model in the enclave.
        basis: ``measured`` or ``modelled``, and where.
        input_size, attacked_size: Sides of the model's input, for times and for attacks, pixels.
        notes: What was reduced or must be known.
        taken: On which machine the times were taken, and when.
    """

    model: str
    weights: str
    random_weights: bool
    data: str
    kind: str
    published: Published | None
    points: list[Point]
    chosen: int | None
    strict_chosen: int | None
    full_ms: float
    basis: str
    threshold: float
    floor: float
    resolution: int
    images: dict[str, int]
    input_size: int
    attacked_size: int
    cgan: str
    panel: list[str]
    paper_config: SplitConfig = field(repr=False)
    strict_config: SplitConfig = field(repr=False)
    notes: list[str] = field(default_factory=list)
    taken: Taken | None = None

    @property
    def shown_data(self) -> str:
        """What the attacks ran on, in a word or two; the paper's data is `kind`."""
        if self.kind == TELEMETRY:
            return TELEMETRY
        return "generated images" if self.data.startswith(GENERATED) else "photos"

    @property
    def contradicted(self) -> list[Point]:
        """Points that the published rule calls safe and the strict panel proves to leak."""
        return [p for p in self.points if p.published_safe and p.strict_status == "leaks"]


class ReproduceOptions(TypedDict, total=False):
    """What `reproduce` takes as keyword arguments, as `find` does; None is the default."""

    weights: str | None
    require_weights: bool
    data: str | Path | None
    budget: BudgetName | None
    enclave: EnclaveName | None
    accelerator: AcceleratorName | None
    sgx_model: SgxModel | str | None
    repetitions: int | None
    profile: TargetProfile | str | Path | None
    storage: str | None
    seed: int | None


def reproduce(
    model: str,
    *,
    cut: str | None = None,
    watcher: Watcher | None = None,
    **options: Unpack[ReproduceOptions],
) -> Study:
    """Run both protocols on a model's published points, and time them.

    Attacks are trials of a stored study: the same call goes on where an earlier one stopped.

    Args:
        model: A VGG, ResNet or EfficientNet, as for `find`.
        cut: One point, by its number from 1 or its name; None takes all.
        watcher: Is told of progress.
        options: As for `find`, see `ReproduceOptions`. ``budget="quick"`` is reduced: fewer images
            and epochs, smaller inputs for the attacks; ``standard`` and ``full`` attack at the
            published size. ``repetitions`` is 5 unless given. With ``profile``, a file of `partopt
            profile` for this model, the runtimes are the file's.

    Raises:
        UsageError: No published points for this architecture, no such point, or a profile of
            several images a run.
        ConfigError: The profile is of another layer graph.
    """
    known = frozenset(ReproduceOptions.__annotations__)
    given = known_names("reproduce", options, known)
    if "profile" not in given:
        given.setdefault("repetitions", 5)
    asked = FindRequest.of(model, given)
    watcher = watcher or Silent()
    device = pick_accelerator(asked.timing.accelerator)
    effort = budget_of(asked.effort.budget, device, PUBLISHED_BUDGETS)
    reduced = effort.name == "quick"
    panel = replace(BUDGETS[effort.name], split=effort.split) if reduced else BUDGETS[effort.name]
    watcher.stage(f"timing {model} at its own size")
    whole = load(ModelRequest(spec=model, weights="none"))
    graph = whole.trace()
    every = graph.cuts("paper")
    wanted = _points_wanted(graph, every, cut)
    timed = _timed(asked, graph, every, watcher)
    if asked.timing.sgx_model is not None:
        timed = modelled(timed, graph, every, asked.timing.sgx_model)
    size = min(REDUCED_SIZE, whole.preprocessing.input_size) if reduced else None
    attacked = load(
        ModelRequest(
            spec=model,
            input_size=size,
            seed=asked.seed,
            **{n: given[n] for n in ("weights", "require_weights") if n in given},
        )
    )

    # With a profile, this machine's own times are asked for by nobody and need no enclave.
    elsewhere: dict[str, Any] = {} if asked.profile is None else {"enclave": "native"}

    def by(protocol: ProtocolName, level: Budget) -> SplitConfig:
        request = replace(
            asked,
            model=attacked,
            protocol=protocol,
            which_cuts=CutChoice(cuts=[c.name for c in wanted]),
            effort=Effort(budget=level),
            timing=replace(asked.timing, sgx_model=None, repetitions=2, **elsewhere),
            profile=None if reduced else asked.profile,
        )
        return find_cut(request, watcher).config

    timings = _Timings(every, wanted, timed, whole.preprocessing.input_size)
    return _put_together(model, timings, by("paper", effort), by("strict", panel), reduced)


def _timed(
    asked: FindRequest, graph: LayerGraph, every: Sequence[Cut], watcher: Watcher
) -> Profile:
    """Times of all points: those of the profile asked for, or this machine's."""
    target = asked.profile
    if target is None:
        conditions = asked.timing.conditions(asked.seed)
        return profile(graph, every, conditions, progress=lambda s: watcher.progress("profile", s))
    if target.conditions.batch != 1:
        raise UsageError(
            f"`profile` got times of {target.conditions.batch} images a run, and the published "
            "runtimes are of one; make one with --batch 1"
        )
    return target.times(graph, every)


@dataclass(frozen=True)
class _Timings:
    """All published points and those wanted, their times, at which side of the input."""

    every: Sequence[Cut]
    wanted: Sequence[Cut]
    profile: Profile
    input_size: int


def _points_wanted(graph: LayerGraph, every: Sequence[Cut], cut: str | None) -> list[Cut]:
    if cut is None:
        return list(every)
    if cut.isdigit():
        number = int(cut)
        if not 1 <= number <= len(every):
            raise UsageError(f"`cut` got {cut}; use 1 to {len(every)}, or a point's name")
        return [every[number - 1]]
    node = graph.cut(cut).node
    same = [c for c in every if c.node == node]
    if not same:
        names = ", ".join(c.name for c in every)
        raise UsageError(f"`cut` got {cut!r}, which is no published point; use one of {names}")
    return same


def _point(index: int, cut: Cut, timed: Profile, one: CutRow, two: CutRow) -> Point:
    latency, full = timed.cuts[index], timed.full_enclave.ms
    cgan = next((a for a in one.attacks if a.score is not None), None)
    best = _strongest(two.attacks)
    return Point(
        number=index + 1,
        cut=cut.name,
        layers=cut.head_layers,
        payload_bytes=cut.payload_bytes,
        enclave_ms=latency.enclave.ms,
        handoff_ms=latency.handoff.ms,
        accelerator_ms=latency.accelerator.ms,
        total_ms=latency.total.ms,
        share=share(full, latency.total.ms),
        ratio=ratio(full, latency.total.ms),
        cgan_ssim=cgan.ssim_raw if cgan else None,
        cgan_low=cgan.low if cgan else None,
        cgan_high=cgan.high if cgan else None,
        cgan_key=cgan.key if cgan else "",
        published_safe=one.safe,
        strict_attacker=best.attacker if best else "",
        strict_raw=best.ssim_raw if best else None,
        strict_score=best.score if best else None,
        strict_low=best.low if best else None,
        strict_high=best.high if best else None,
        strict_key=best.key if best else "",
        strict_status=two.status,
        strict_reason=two.reason,
    )


def _strongest(attacks: Sequence[Attack]) -> Attack | None:
    scored = [a for a in attacks if a.score is not None]
    return max(scored, key=lambda a: a.score or 0.0, default=None)


def _put_together(
    model: str, timings: _Timings, paper: SplitConfig, ours: SplitConfig, reduced: bool
) -> Study:
    every, wanted, timed = timings.every, timings.wanted, timings.profile
    kind = TELEMETRY if paper.privacy.data.startswith(ton_iot.PREFIX.rstrip(":")) else PHOTOS
    numbers = {c.name: i for i, c in enumerate(every)}
    full = timed.full_enclave.ms
    points = []
    for cut, one, two in zip(wanted, paper.cuts, ours.cuts, strict=True):
        points.append(_point(numbers[cut.name], cut, timed, one, two))
    p = paper.privacy
    total = timed.cuts[0].total
    # The runs' own times stand in no column: what is to be said of them is not said here.
    theirs = {NO_ENCLAVE, NO_GPU, NO_SGX} - set(timed.warnings)
    said = [w for w in (*paper.warnings, *ours.warnings) if w not in theirs]
    notes = list(dict.fromkeys([*timed.warnings, *said]))
    if len(wanted) < len(every):
        notes.insert(0, f"{len(wanted)} of {len(every)} points: later ones were not attacked")
    attacked = paper.model.preprocessing.input_size
    if reduced:
        notes.insert(
            0,
            f"REDUCED: attacks on inputs of {attacked} pixels, {p.images['train']} training "
            "images; nothing here says what the published size would give",
        )
    return Study(
        model=model,
        weights=paper.model.weights,
        random_weights=paper.model.random_weights,
        data=p.data,
        kind=kind,
        published=HEADLINES.get((model, kind)),
        points=points,
        chosen=next((x.number for x in points if x.published_safe), None),
        strict_chosen=next((x.number for x in points if x.strict_status == "safe"), None),
        full_ms=full,
        basis=f"{total.basis} on {total.backend}",
        threshold=p.threshold,
        floor=p.floor,
        resolution=p.resolution,
        images=p.images,
        input_size=timings.input_size,
        attacked_size=attacked,
        cgan=p.attackers[0].settings,
        panel=[a.settings for a in ours.privacy.attackers],
        paper_config=paper,
        strict_config=ours,
        notes=notes,
        taken=timed.taken,
    )
