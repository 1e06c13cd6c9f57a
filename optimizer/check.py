"""Hold a split config against a model: does the cut still protect, is it still the one to use?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..config import CutRow, SplitConfig, Time
from ..datasets import GENERATED, Split
from ..errors import BackendError, ConfigError, CutError, PartoptError, UsageError
from ..graph import Cut, LayerGraph
from ..models import LoadedModel
from ..profilers.backends import pick_accelerator, pick_enclave
from ..profilers.base import CutLatency, Figure, Profile
from ..profilers.profile import profile
from ..settings import discover, read
from ..splitting import boundary_nodes
from ..stored import load_stored
from .budgets import pick
from .choose import TIE, Candidates, choose
from .find import SplitResult, Watcher, find
from .minima import grant_of
from .protocols import protocol_of
from .result import graph_hash
from .rule import Evidence, Verdict, judge
from .sweep import may_leak

What = Literal["holds", "regressed", "moved", "slower", "undecided", "skipped"]
HOLDS, UNDECIDED, REGRESSED, CHANGED = 0, 1, 4, 5


@dataclass(frozen=True)
class Property:
    """One thing that was checked: its name, what became of it, and why in one phrase."""

    name: str
    what: What
    detail: str


@dataclass
class CheckResult:
    """All properties of one split config against one model."""

    name: str
    model: str
    cut: str
    properties: list[Property] = field(default_factory=list)
    found: SplitResult | None = None

    def add(self, name: str, what: What, detail: str) -> None:
        """Note one property."""
        self.properties.append(Property(name, what, detail))

    @property
    def exit_code(self) -> int:
        """0 holds, 4 privacy regression, 1 undecided, 5 cut moved or latency regressed."""
        seen = {p.what for p in self.properties}
        if "regressed" in seen:
            return REGRESSED
        if "undecided" in seen or not seen:
            return UNDECIDED
        return CHANGED if seen & {"moved", "slower"} else HOLDS

    @property
    def verdict(self) -> str:
        """The result in one phrase."""
        return {
            HOLDS: "holds",
            UNDECIDED: "could not be decided (counts as failing)",
            REGRESSED: "PRIVACY REGRESSION",
            CHANGED: "protects, but the cut moved or latency regressed",
        }[self.exit_code]


def worst(codes: Sequence[int]) -> int:
    """The exit code of several checks: privacy first, then undecided, then changed."""
    return next((c for c in (REGRESSED, UNDECIDED, CHANGED) if c in codes), HOLDS)


def check(
    path: str | Path,
    *,
    model: str | None = None,
    weights: str | None = None,
    data: str | Path | None = None,
    ssim: float | None = None,
    budget: str | None = None,
    attack: bool = True,
    reattack: bool = False,
    new_data: bool = False,
    latency: bool = True,
    latency_tolerance: float = 0.15,
    trust_model: bool = False,
    storage: str | None = None,
    workers: int = 1,
    watcher: Watcher | None = None,
) -> CheckResult:
    """Check one split config. Whatever cannot be decided counts as failing.

    Args:
        path: The split config.
        model: Another model spec than the stored one.
        weights: Other weights than the stored ones.
        data: The images; needed for an attack where the evidence was made on a folder.
        ssim: Another threshold than the stored one.
        budget: Another budget than the stored one for attacking again.
        attack: False never attacks: changed weights are then undecided.
        reattack: Attack even where weights, graph and evidence are unchanged.
        new_data: Accept images other than those of the evidence, and attack again on them.
        latency: False leaves latency out, for shared runners.
        latency_tolerance: How much the ratio to the full-enclave time of the same run may grow.
        trust_model: Allow a ``.pt2`` file.
        storage, workers, watcher: As for `find`.

    Raises:
        ConfigError: The split config cannot be read, or holds no cut.
        UsageError: A wrong argument.
    """
    config = SplitConfig.read(path)
    if config.cut is None or config.latency_ms is None:
        raise ConfigError(f"split config {str(path)!r} holds no cut: no safe one was found")
    if latency_tolerance <= 0:
        raise UsageError(f"`latency-tolerance` got {latency_tolerance}; use a share above 0")
    result = CheckResult(Path(path).name, model or config.model.spec, config.cut.name)
    try:
        loaded = load_stored(config, model, weights, trust_model)
        graph = loaded.trace()
        if not _graph_holds(result, config, graph):
            return result
        same = _weights_same(result, config, loaded, graph)
        threshold = ssim or config.privacy.threshold
        if same and not reattack and not new_data and threshold == config.privacy.threshold:
            safe = _stored_evidence(result, config, threshold)
        elif attack:
            safe = _attacked_again(
                result, config, loaded, data, threshold, budget, new_data, storage, workers,
                watcher,
            )  # fmt: skip
        else:
            result.add("privacy", "undecided", "the weights changed and attacks are switched off")
            safe = None
        _latency_and_choice(result, config, graph, safe, latency, latency_tolerance)
    except UsageError:
        raise
    except PartoptError as error:
        result.add("run", "undecided", str(error))
    return result


def check_all(
    splits: Sequence[str | Path], settings_file: Path | None, **given: Any
) -> list[CheckResult]:
    """Check split configs, or every model of a settings file that names one.

    Args:
        splits: Split configs; empty takes those of the settings file.
        settings_file: Or None for the one in the working folder, if any.
        given: Arguments of `check`; what is None is taken from the settings.

    Raises:
        UsageError: There is nothing to check, or `model` or `weights` with several configs.
    """
    found = settings_file or discover(Path.cwd())
    entries = (
        {}
        if found is None
        else {str(Path(e.split).resolve()): e for e in read(found).entries() if e.split is not None}
    )
    paths = [Path(p) for p in splits] or [Path(p) for p in entries]
    if not paths:
        raise UsageError("`splits` got nothing; name split configs or list them in partopt.toml")
    if len(paths) > 1 and (given.get("model") or given.get("weights")):
        raise UsageError("`model` and `weights` fit one split config; list several in partopt.toml")
    results = []
    for path in paths:
        entry = entries.get(str(path.resolve()))
        arguments = {n: v for n, v in given.items() if v is not None}
        for name in ("model", "weights", "data", "ssim", "budget", "latency", "latency_tolerance"):
            value = getattr(entry, name, None)
            if value is not None and name not in arguments:
                arguments[name] = value
        try:
            results.append(check(path, **arguments))
        except ConfigError as error:
            unread = CheckResult(path.name, "-", "-")
            unread.add("config", "undecided", str(error))
            results.append(unread)
    return results


def _graph_holds(result: CheckResult, config: SplitConfig, graph: LayerGraph) -> bool:
    assert config.cut is not None
    try:
        cut = graph.cut(config.cut.name)
        boundary_nodes(graph, cut)
    except CutError as error:
        result.add("graph", "undecided", str(error))
        return False
    want = [(t.name, tuple(t.shape), t.dtype) for t in config.cut.boundary]
    have = [(s.name, s.shape, s.dtype) for s in cut.boundary]
    if want != have:
        result.add(
            "graph", "undecided", f"the boundary of {cut.name} was {want} and is {have}; run find"
        )
        return False
    result.add("graph", "holds", f"{cut.name} with {len(have)} boundary tensor(s) is still there")
    return True


def _weights_same(
    result: CheckResult, config: SplitConfig, loaded: LoadedModel, graph: LayerGraph
) -> bool:
    same_weights = loaded.weights_hash == config.model.weights_hash
    same_graph = graph_hash(graph) == config.model.graph_hash
    if same_weights and same_graph:
        result.add("weights", "holds", "unchanged: the stored evidence stands")
    else:
        what = "weights" if same_graph else "graph"
        result.add("weights", "skipped", f"the {what} changed: stored evidence does not apply")
    return same_weights and same_graph


def _stored_evidence(
    result: CheckResult, config: SplitConfig, threshold: float
) -> list[int] | None:
    """Apply the rule to the stored figures; the stored verdicts are not believed."""
    assert config.cut is not None
    panel = [a.name for a in config.privacy.attackers]
    protocol = protocol_of(config.privacy.protocol)
    evidence = {
        (i, a.attacker): Evidence.of(a, config.privacy.scale, protocol.interval)
        for i, row in enumerate(config.cuts)
        for a in row.attacks
    }
    names = [row.name for row in config.cuts]
    p = config.privacy
    grant = grant_of(Split(**p.images), {}, p.evidence, protocol.budgets)
    verdicts = judge(names, panel, evidence, threshold, grant)
    mine = names.index(config.cut.name) if config.cut.name in names else -1
    if mine < 0 or not panel:
        result.add("privacy", "undecided", "the stored table lacks the cut; run find again")
        return None
    verdict = verdicts[mine]
    suspect = may_leak(config.sweep, threshold)
    if verdict.safe and suspect is not None:
        result.add(
            "privacy", "regressed", f"stored evidence does not protect: {suspect}, which was only "
            "swept, may leak",
        )  # fmt: skip
        return []
    if verdict.safe:
        result.add(
            "privacy", "holds",
            f"stored evidence ({config.privacy.evidence}): at most {verdict.suffix_high:.2f} here "
            f"and later, below {threshold:g}",
        )  # fmt: skip
    else:
        result.add("privacy", "regressed", f"stored evidence does not protect: {verdict.reason}")
    return _offered(config, names, verdicts)


def _attacked_again(
    result: CheckResult,
    config: SplitConfig,
    loaded: LoadedModel,
    data: str | Path | None,
    threshold: float,
    budget: str | None,
    new_data: bool,
    storage: str | None,
    workers: int,
    watcher: Watcher | None,
) -> list[int] | None:
    """Attack as `find` did, the stored cut's strongest attacker first."""
    assert config.cut is not None
    assert config.latency_ms is not None
    if data is None and not config.privacy.data.startswith(GENERATED):
        result.add(
            "privacy", "undecided",
            f"an attack needs `data`: the evidence was made on {config.privacy.data!r}",
        )  # fmt: skip
        return None
    stored = config.privacy.budget
    effort = pick(budget or stored, budgets=protocol_of(config.privacy.protocol).budgets)
    panel = [a.name for a in config.privacy.attackers]
    strongest = max(
        config.privacy.attacks, key=lambda a: a.score if a.score is not None else -1.0
    ).attacker
    found = find(
        loaded,
        ssim=threshold,
        protocol=config.privacy.protocol,
        data=data,
        cuts=[row.name for row in config.cuts if not row.swept],
        budget=effort.name,
        resolution=config.privacy.resolution if effort.name == stored else None,
        scale=config.privacy.scale,
        attackers=panel,
        enclave="auto",
        accelerator="auto",
        threads=config.latency_ms.threads,
        batch=config.latency_ms.batch,
        storage=storage,
        workers=workers,
        seed=config.seed,
        tune=config.privacy.tuned,
        first=(config.cut.name, strongest),
        expected_data=None if new_data or effort.name != stored else config.privacy.data_hash,
        watcher=watcher,
    )
    result.found = found
    names = [c.name for c in found.cuts]
    verdict = found.verdicts[names.index(config.cut.name)]
    said = f"attacked again at budget {effort.name}" + (
        "" if effort.name == stored else f" (stored: {stored})"
    )
    if verdict.safe:
        result.add(
            "privacy", "holds",
            f"{said}: at most {verdict.suffix_high:.2f} here and later, below {threshold:g}",
        )  # fmt: skip
        return _offered(config, names, found.verdicts)
    if verdict.status == "leaks":
        reached = max(verdict.low or 0.0, verdict.suffix_low)
        result.add(
            "privacy", "regressed",
            f"{said}: {verdict.reason}, at least {reached:.2f} against {threshold:g}",
        )  # fmt: skip
    else:
        result.add("privacy", "regressed", f"{said}: {verdict.reason}")
    return None


def _figure(t: Time) -> Figure:
    return Figure(t.ms, t.noise_ms, t.basis, t.backend)


def _from_row(row: CutRow) -> CutLatency:
    parts = ("enclave", "handoff", "accelerator", "total")
    return CutLatency(*(_figure(getattr(row.latency_ms, n)) for n in parts))


def _latency_and_choice(
    result: CheckResult,
    config: SplitConfig,
    graph: LayerGraph,
    safe: list[int] | None,
    latency: bool,
    tolerance: float,
) -> None:
    assert config.cut is not None
    assert config.latency_ms is not None
    stored = config.latency_ms
    cuts = graph.cuts([row.name for row in config.cuts])
    mine = next(c.index for c in cuts if c.node == graph.cut(config.cut.name).node)
    times = [_from_row(row) for row in config.cuts]
    whole = [_figure(stored.full_enclave), _figure(stored.full_accelerator)]
    modelled = stored.enclave.basis == "modelled"
    if not latency or modelled:
        why = "stored times are modelled" if modelled else "switched off"
        result.add("latency", "skipped", why)
    else:
        now = _measured_again(result, config, graph, cuts, mine, tolerance)
        if now is not None:
            times, whole = now.cuts, [now.full_enclave, now.full_accelerator]
    candidates = Candidates.of(cuts, times, *whole)
    _still_pays(result, config, candidates, mine)
    if safe is None:
        result.add("best cut", "skipped", "no evidence to choose on")
        return
    _best_cut(result, config, candidates, safe, mine)


def _still_pays(
    result: CheckResult, config: SplitConfig, candidates: Candidates, mine: int
) -> None:
    """Whether the split is still faster than the whole model inside, where times can say."""
    advice = candidates.advise(mine)
    if advice is None or advice.what == "not compared" or config.recommendation is None:
        return
    if config.recommendation == "do not split":
        result.add("split or not", "skipped", "the config itself recommends not to split")
    elif advice.what == "split":
        result.add("split or not", "holds", advice.reason)
    else:
        result.add("split or not", "moved", f"to the whole model in the enclave: {advice.reason}")


def _measured_again(
    result: CheckResult,
    config: SplitConfig,
    graph: LayerGraph,
    cuts: list[Cut],
    mine: int,
    tolerance: float,
) -> Profile | None:
    assert config.latency_ms is not None
    stored = config.latency_ms
    try:
        enclave = pick_enclave(stored.full_enclave.backend)
        accelerator = pick_accelerator(stored.full_accelerator.backend)
    except BackendError as error:
        result.add("latency", "skipped", str(error))
        return None
    now = profile(
        graph, cuts, enclave=enclave, accelerator=accelerator,
        threads=stored.threads, batch=stored.batch,
    )  # fmt: skip
    before = stored.total.ms / stored.full_enclave.ms
    after = now.cuts[mine].total.ms / now.full_enclave.ms
    text = f"{after:.2f} of the full-enclave time of the same run, stored {before:.2f}"
    what: What = "slower" if after > before * (1 + tolerance) else "holds"
    result.add("latency", what, text)
    return now


def _leak(result: CheckResult, config: SplitConfig, i: int) -> float:
    """Upper end of the score here and later, of this check's own attacks where there were any."""
    if result.found is not None:
        names = [c.name for c in result.found.cuts]
        return result.found.verdicts[names.index(config.cuts[i].name)].suffix_high
    high = config.cuts[i].suffix_high
    return float("inf") if high is None else high


def _offered(config: SplitConfig, names: Sequence[str], verdicts: Sequence[Verdict]) -> list[int]:
    """Rows of the config that may be used: safe, and not there because of a sweep."""
    safe = {name for name, verdict in zip(names, verdicts, strict=True) if verdict.safe}
    return [i for i, row in enumerate(config.cuts) if row.name in safe and not row.swept]


def _best_cut(
    result: CheckResult,
    config: SplitConfig,
    candidates: Candidates,
    safe: list[int],
    mine: int,
) -> None:
    best = choose(candidates, safe, {i: _leak(result, config, i) for i in safe})
    cuts, times = candidates.cuts, candidates.latencies
    if best is None:
        result.add("best cut", "skipped", "no cut is safe")
        return
    stored_safe = [i for i, row in enumerate(config.cuts) if row.safe]
    gain = times[mine].total.ms - times[best].total.ms
    noise = 2 * (times[mine].total.noise_ms ** 2 + times[best].total.noise_ms ** 2) ** 0.5
    pays = gain > max(noise, TIE * times[best].total.ms)
    # Where the same cuts are safe as before, a tie that falls another way is no move.
    if best == mine or (not pays and set(safe) <= set(stored_safe)):
        result.add("best cut", "holds", f"{cuts[mine].name} is still the one to use")
        return
    work = cuts[mine].head_flops - cuts[best].head_flops
    result.add(
        "best cut", "moved",
        f"from {cuts[mine].name} to {cuts[best].name}: {gain:+.2f} ms gained, "
        f"{work / 1e6:.0f} MFLOP less in the enclave",
    )  # fmt: skip
