"""Find the fastest safe cut of a model, end to end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Unpack

from optuna.storages import BaseStorage

from .. import config as c
from ..attackers.decoder import Decoder
from ..attackers.sketch import Sketch
from ..graph.build import Cut, LayerGraph
from ..models.load import LoadedModel
from ..profilers.base import Conditions, Profile, Verification
from ..profilers.profile import modelled, profile, verify
from ..profilers.sgx_model import SgxModel
from ..profilers.target import TargetProfile
from .choose import compares
from .coordinator import Fleet, Helpers, threads_for
from .local_workers import LocalWorkers, arguments
from .minima import grant_of
from .premises import Premises
from .prepare import Prepared, prepare
from .requests import FindOptions, FindRequest
from .result import build_config
from .rule import Verdict
from .search import Course, Listener, Search
from .settle import Marked, Settling, settle
from .storage import close, open_storage
from .sweep import Sweepers
from .watcher import Silent, Watcher

CEILING = 4  # times its epochs that an attack still rising may take
VERIFIED_RUNS = 15  # of the chosen cut for real


@dataclass(frozen=True)
class SplitResult:
    """What `find` found.

    Attributes:
        config: The split config: every measurement, setting and warning.
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
    model: str | LoadedModel, *, watcher: Watcher | None = None, **options: Unpack[FindOptions]
) -> SplitResult:
    """Find the cut with the lowest latency that no attacker of the panel inverts there or later.

    Args:
        model: A model spec (see `ModelRequest`) or a loaded model.
        watcher: Is told of progress.
        options: ``ssim``, ``weights``, ``data``, ``budget`` and so on: the names of `FindOptions`,
            which are the fields of `FindRequest` and of the records that it holds.

    Raises:
        UsageError: A name that there is none of, or a wrong value.
        PartoptError: What else stops a run, by kind.
    """
    return find_cut(FindRequest.of(model, options), watcher)


def find_cut(request: FindRequest, watcher: Watcher | None = None) -> SplitResult:
    """As `find`, of a request."""
    watcher = watcher or Silent()
    opened, storage_name = open_storage(request.storage)
    try:
        with _helpers(request) as helpers:
            return _found(request, watcher, (opened, storage_name), helpers)
    finally:
        close(opened)


def _helpers(request: FindRequest) -> LocalWorkers:
    """The worker processes that a run starts itself; none unless it is a fleet's."""
    count = request.effort.workers if request.fleet else 0
    options = arguments(request) if count else []
    return LocalWorkers(count, options, request.storage or "")


def _found(
    request: FindRequest, watcher: Watcher, storage: tuple[BaseStorage, str], helpers: Helpers
) -> SplitResult:
    clock = _Clock.of(request, watcher)
    opened, storage_name = storage
    ready = prepare(request, watcher)
    fleet = _fleet(ready, helpers) if request.fleet else None
    effort, protocol, graph = request.effort, ready.protocol, ready.graph

    watcher.stage("profiling all cuts" if request.profile is None else "reading the profile")
    measured = request.times or clock.measured(graph, ready.cuts)
    timing = clock.modelled(measured, graph, ready.cuts)
    settling = _settling(ready)
    listener = Listener(
        on_progress=watcher.progress,
        on_done=lambda cut, a, leaks: watcher.attacked(cut.name, a.attacker, a.score, leaks),
        on_tuned=lambda cut, name, score: watcher.attacked(
            cut.name, name, score.value, score.low >= protocol.threshold
        ),
    )

    def make(over: list[Cut], latencies: Profile, marked: Marked) -> Search:
        inside, outside = latencies.full_enclave, latencies.full_accelerator
        course = Course(
            threshold=protocol.threshold,
            interval=protocol.interval,
            exhaustive=effort.exhaustive,
            first=request.first,
            attack=effort.attack,
            whole=inside if compares(inside, outside) else None,
            grant=settling.grant,
            promoted=marked.promoted,
            covers=settling.covers,
            counted=marked.counted,
            limits=request.adversary.limits(copies=protocol.name == "strict"),
            ceiling=CEILING if ready.certifies else 1,
        )
        bench, panel = ready.bench, ready.panel
        return Search(over, latencies.cuts, bench, panel, course, opened, listener, fleet)

    def time_of(more: list[Cut]) -> Profile:
        return clock.modelled(clock.measured(graph, more), graph, more)

    count, names = len(ready.cuts), ", ".join(ready.panel)
    watcher.stage(f"attacking {count} cuts with {names}", count * len(ready.panel))
    settled = settle(ready.cuts, timing, make, time_of, settling, watcher)
    cut = None if settled.chosen is None else settled.cuts[settled.chosen]
    verified = None
    if cut is not None and request.times is None and request.profile is None:
        watcher.stage(f"running the split at {cut.name} for real")
        verified = clock.verified(graph, cut, ready.cuts, measured)
    config = build_config(ready, settled, verified, storage_name)
    return SplitResult(config, cut, settled.cuts, settled.verdicts, graph, ready.model)


def _fleet(ready: Prepared, helpers: Helpers) -> Fleet:
    """The crew of a run whose attacks workers make."""
    wanted = ready.budget.split, ready.budget.minimum_images
    premises = Premises.of(ready.model, ready.bench, wanted, ready.request.seed)
    return Fleet(premises, threads_for(helpers.count), helpers, ready.request.artifacts)


def _settling(ready: Prepared) -> Settling:
    """What is done between the search and an answer that stands."""
    effort, protocol = ready.request.effort, ready.protocol
    strict, small = protocol.name == "strict", ready.budget.cover
    covers = strict and bool(small) and not effort.exhaustive
    sweeps = strict and (effort.attack or covers)
    return Settling(
        every=ready.graph.cuts("all") if sweeps else [],
        covers=covers,
        sweepers=Sweepers(
            sketch=Sketch(**ready.budget.sweep),
            decoder=Decoder(**small) if covers else None,
        ),
        grant=grant_of(ready.images.split, ready.panel, ready.evidence, protocol.budgets),
        tune=effort.tune if effort.attack else 0,
        workers=effort.workers,
        confirms=confirms(ready),
        adversary=ready.request.adversary.adversary_images,
    )


def confirms(ready: Prepared) -> bool:
    """Whether an answer is trained again: where it may be called safe, or that was asked for."""
    strict = ready.protocol.name == "strict"
    return strict and (ready.certifies or ready.request.adversary.adversary_images is not None)


@dataclass(frozen=True)
class _Clock:
    """Times cuts under one set of conditions, or knows their times from a profile."""

    conditions: Conditions
    sgx_model: SgxModel | None
    watcher: Watcher
    target: TargetProfile | None = field(default=None, repr=False)

    @classmethod
    def of(cls, request: FindRequest, watcher: Watcher) -> _Clock:
        """As a run asks for it; with a profile, this machine need not have its backends."""
        here = Conditions() if request.profile else request.timing.conditions(request.seed)
        return cls(here, request.timing.sgx_model, watcher, request.profile)

    def measured(self, graph: LayerGraph, cuts: list[Cut]) -> Profile:
        """Times of cuts as they were measured."""
        if self.target is not None:
            return self.target.times(graph, cuts)
        return profile(
            graph, cuts, self.conditions, progress=lambda s: self.watcher.progress("profile", s)
        )

    def modelled(self, measured: Profile, graph: LayerGraph, cuts: list[Cut]) -> Profile:
        """The same, scaled where that was asked for."""
        return modelled(measured, graph, cuts, self.sgx_model) if self.sgx_model else measured

    def verified(
        self, graph: LayerGraph, cut: Cut, cuts: list[Cut], measured: Profile
    ) -> Verification:
        """The chosen cut, run for real, against what was measured of `cuts`."""
        by_node = {c.node: latency for c, latency in zip(cuts, measured.cuts, strict=True)}
        runs = replace(self.conditions, repetitions=VERIFIED_RUNS)
        return verify(graph, cut, by_node[cut.node], runs)
