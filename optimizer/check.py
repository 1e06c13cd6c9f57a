"""Hold a split config against a model: does the cut still protect, is it still the one to use?

The split config is under test: what has to hold comes from a `Policy`, evidence from `gate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import SplitConfig
from ..errors import ConfigError, CutError, PartoptError, UsageError
from ..graph import Cut, LayerGraph
from ..identity import graph_hash, of_this_scheme
from ..models import LoadedModel, load_model
from ..profilers.backends import pick_accelerator
from ..settings import Entry, Settings, discover, read
from ..splitting import boundary_nodes
from ..stored import weights_of
from . import drift
from .checked import CHANGED, HOLDS, REGRESSED, UNDECIDED, CheckResult, Property, What, worst
from .find import Watcher
from .gate import How, Subject, privacy
from .policy import Policy

__all__ = [
    "CHANGED",
    "HOLDS",
    "REGRESSED",
    "UNDECIDED",
    "CheckResult",
    "Property",
    "What",
    "check",
    "check_all",
    "worst",
]


def check(
    path: str | Path,
    *,
    policy: Policy | None = None,
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
    trust_stored: bool | None = None,
    storage: str | None = None,
    workers: int = 1,
    watcher: Watcher | None = None,
) -> CheckResult:
    """Check one split config. Whatever cannot be decided counts as failing.

    Args:
        path: The split config.
        policy: What has to hold; None is the built-in policy.
        model: Another model spec than the stored one.
        weights: Other weights than the stored ones.
        data, ssim, budget, trust_stored: Said here, they go before the policy's.
        attack: False never attacks: evidence that is not stored is then undecided.
        reattack: Run every attack anew, in an empty cache and storage.
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
    if reattack and (storage is not None or not attack):
        with_ = "--storage" if storage is not None else "--no-attack"
        raise UsageError(
            f"`reattack` got {with_} beside it, but uses nothing stored; leave one out"
        )
    said = Policy(
        ssim=ssim,
        budget=budget,
        weights=weights,
        data=None if data is None else str(data),
        trust_stored=trust_stored,
    )
    policy = said.over(policy or Policy())
    how = How(attack, reattack, new_data, storage, workers, watcher)
    result = CheckResult(
        Path(path).name, model or policy.model or config.model.spec, config.cut.name
    )
    try:
        subject = _subject(result, config, policy, model, trust_model)
        if subject is None:
            return result
        safe = privacy(result, subject, how)
        _latency_and_choice(result, subject, safe, latency_tolerance if latency else None)
    except UsageError:
        raise
    except PartoptError as error:
        result.add("run", "undecided", str(error))
    return result


def check_all(
    splits: Sequence[str | Path],
    settings_file: str | Path | None,
    *,
    under_test: Path | None = None,
    terms: Policy | None = None,
    **given: Any,
) -> list[CheckResult]:
    """Check split configs, or every model of a settings file that names one.

    Args:
        splits: Split configs; empty takes those of the settings file.
        settings_file: ``none`` for the built-in policy alone; None for the one in the working
            folder, if any.
        under_test: Folder in which `split` and `weights` of the settings are looked up; None is
            the settings file's own.
        terms: What the command line says; it goes before the settings.
        given: Arguments of `check`; what is None is taken from the settings.

    Raises:
        UsageError: There is nothing to check, or `model` or `weights` with several configs.
    """
    found = None if str(settings_file) == "none" else settings_file or discover(Path.cwd())
    settings = Settings() if found is None else read(Path(found), under_test)
    entries = {str(Path(e.split).resolve()): e for e in settings.entries() if e.split is not None}
    paths = [Path(p) for p in splits] or [Path(p) for p in entries]
    if not paths:
        raise UsageError("`splits` got nothing; name split configs or list them in partopt.toml")
    if len(paths) > 1 and (given.get("model") or given.get("weights")):
        raise UsageError("`model` and `weights` fit one split config; list several in partopt.toml")
    results = []
    for path in paths:
        entry = entries.get(str(path.resolve()))
        arguments = {n: v for n, v in given.items() if v is not None}
        try:
            if entry is None:
                entry = _nearest_entry(settings, SplitConfig.read(path).model.spec)
            for name in ("latency", "latency_tolerance"):
                value = getattr(entry, name)
                if value is not None:
                    arguments.setdefault(name, value)
            policy = _policy_of(entry, Path(found).name if found is not None else None)
            results.append(check(path, policy=(terms or Policy()).over(policy), **arguments))
        except ConfigError as error:
            unread = CheckResult(path.name, "-", "-")
            unread.add("config", "undecided", str(error))
            results.append(unread)
    return results


def _nearest_entry(settings: Settings, spec: str) -> Entry:
    """Of a config that the settings do not list: what they say of its model, or of all."""
    short = spec.removeprefix("torchvision:")
    for entry in settings.entries():
        if entry.model.removeprefix("torchvision:") == short:
            return entry
    return settings.entry_for(spec)


def _policy_of(entry: Entry, source: str | None) -> Policy:
    names = set(Policy.__dataclass_fields__) - {"source"}
    said = {n: v for n, v in entry.model_dump().items() if n in names and v is not None}
    return Policy(**said) if source is None else Policy(source=source, **said)


def _subject(
    result: CheckResult, config: SplitConfig, policy: Policy, model: str | None, trust_model: bool
) -> Subject | None:
    """Load and trace what the policy names; None, with the reason noted, if it is another thing."""
    assert config.cut is not None
    if model is None and policy.model not in (None, config.model.spec):
        result.add(
            "model",
            "undecided",
            f"the split config deploys {config.model.spec!r}, {policy.source} names "
            f"{policy.model!r}; run find again",
        )
        return None
    weights = policy.weights or ("DEFAULT" if model is not None else weights_of(config))
    if weights == "none" and policy.weights is None:
        result.add(
            "weights",
            "undecided",
            "the split config was made with random weights; if that is meant, say --weights none",
        )
        return None
    loaded = load_model(
        model or config.model.spec,
        weights=weights,
        strict=True,
        trust_model=trust_model,
        mean=policy.mean,
        std=policy.std,
        input_size=policy.input_size,
        seed=policy.seed or 0,
    )
    graph = loaded.trace()
    if not _preprocessing_holds(result, config, loaded):
        return None
    deployed = _graph_holds(result, config, graph)
    if deployed is None:
        return None
    same = _weights_same(result, config, loaded, graph)
    terms = policy.terms(config, pick_accelerator("auto"))
    cuts = terms.cuts(graph, deployed)
    return Subject(config, loaded, graph, policy, terms, deployed, cuts, same)


def _preprocessing_holds(result: CheckResult, config: SplitConfig, loaded: LoadedModel) -> bool:
    stored = config.model.preprocessing.model_dump()
    wanted = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in loaded.preprocessing.values().items()
    }
    differs = [n for n in wanted if stored[n] != wanted[n]]
    if differs:
        result.add(
            "preprocessing",
            "undecided",
            "made with "
            + ", ".join(f"{n} {stored[n]}, not {wanted[n]}" for n in differs)
            + "; if that is meant, say so with --input-size, --mean and --std or in the settings",
        )
    return not differs


def _graph_holds(result: CheckResult, config: SplitConfig, graph: LayerGraph) -> Cut | None:
    assert config.cut is not None
    try:
        cut = graph.cut(config.cut.name)
        boundary_nodes(graph, cut)
    except CutError as error:
        result.add("graph", "undecided", str(error))
        return None
    want = [(t.name, tuple(t.shape), t.dtype) for t in config.cut.boundary]
    have = [(s.name, s.shape, s.dtype) for s in cut.boundary]
    if want != have:
        result.add(
            "graph", "undecided", f"the boundary of {cut.name} was {want} and is {have}; run find"
        )
        return None
    result.add("graph", "holds", f"{cut.name} with {len(have)} boundary tensor(s) is still there")
    return cut


def _weights_same(
    result: CheckResult, config: SplitConfig, loaded: LoadedModel, graph: LayerGraph
) -> bool:
    changed = []
    if loaded.weights_hash != config.model.weights_hash:
        changed.append("the weights changed")
    if not of_this_scheme(config.model.graph_hash):
        changed.append("the graph's hash is an older partopt's and says nothing")
    elif graph_hash(graph) != config.model.graph_hash:
        changed.append("the graph changed")
    if changed:
        said = f"{' and '.join(changed)}: stored evidence does not apply"
        result.add("weights", "skipped", said)
    else:
        result.add("weights", "holds", "unchanged, and so is the graph")
    return not changed


def _latency_and_choice(
    result: CheckResult, subject: Subject, safe: set[str] | None, tolerance: float | None
) -> None:
    config, graph = subject.config, subject.graph
    rows = config.cuts if result.found is None else result.found.config.cuts
    now = None
    if tolerance is None:
        result.add("latency", "skipped", "switched off")
    else:
        now = drift.latency_holds(result, config, graph, subject.cuts, tolerance)
    there = {row.name for row in rows}
    cuts = subject.cuts if now is not None else [c for c in subject.cuts if c.name in there]
    candidates = drift.candidates(config, cuts, rows, now)
    drift.still_pays(result, config, graph, candidates)
    if safe is None:
        result.add("best cut", "skipped", "no evidence to choose on")
        return
    drift.still_best(result, config, graph, candidates, drift.leaks(rows, safe))
