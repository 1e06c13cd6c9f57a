"""Hold a split config against a model: does the cut still protect, is it still the one to use?

The split config is under test: what has to hold comes from a `Policy`, evidence from `gate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from ..arguments.choices import known_names
from ..config import CutInfo, SplitConfig
from ..errors import ConfigError, CutError, PartoptError, UsageError
from ..graph.build import Cut, LayerGraph
from ..graph.splitting import boundary_nodes
from ..identity.network import graph_hash, of_this_scheme
from ..models.load import LoadedModel, load
from ..models.request import ModelRequest
from ..models.stored import hold_trusted, weights_of
from ..profilers.backends import pick_accelerator
from ..settings import Entry, Settings, discover, read
from . import drift
from .check_request import CheckOptions, CheckRequest
from .checked import (
    CHANGED,
    HOLDS,
    REGRESSED,
    UNDECIDED,
    Checked,
    CheckResult,
    Deployed,
    Property,
    What,
    worst,
)
from .gate import privacy
from .policy import Policy
from .watcher import Watcher

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
    "check_one",
    "worst",
]


def check(
    path: str | Path,
    *,
    policy: Policy | None = None,
    watcher: Watcher | None = None,
    **options: Unpack[CheckOptions],
) -> CheckResult:
    """Check one split config. Whatever cannot be decided counts as failing.

    Args:
        path: The split config.
        policy: What has to hold; None is the built-in policy.
        watcher: Is told of progress.
        options: ``weights``, ``data``, ``reattack`` and so on: the names of `CheckOptions`, which
            `CheckRequest` explains.

    Raises:
        ConfigError: The split config cannot be read, or holds no cut.
        UsageError: A wrong argument.
    """
    return check_one(path, CheckRequest.of(policy or Policy(), options), watcher)


def check_one(
    path: str | Path, request: CheckRequest, watcher: Watcher | None = None
) -> CheckResult:
    """As `check`, of a request."""
    deployed = Deployed.read(path)
    spec = request.model or request.policy.model or deployed.config.model.spec
    result = CheckResult(Path(path).name, spec, deployed.cut.name)
    try:
        checked = _checked(result, deployed, request)
        if checked is None:
            return result
        safe = privacy(result, checked, request.sources, watcher)
        tolerance = request.latency_tolerance if request.latency else None
        _latency_and_choice(result, checked, safe, tolerance)
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
    watcher: Watcher | None = None,
    **options: Unpack[CheckOptions],
) -> list[CheckResult]:
    """Check split configs, or every model of a settings file that names one.

    Args:
        splits: Split configs; empty takes those of the settings file.
        settings_file: ``none`` for the built-in policy alone; None for the one in the working
            folder, if any.
        under_test: Folder in which `split` and `weights` of the settings are looked up; None is
            the settings file's own.
        terms: What the command line says; it goes before the settings.
        watcher: Is told of progress.
        options: As for `check`; what is None is taken from the settings.

    Raises:
        UsageError: There is nothing to check, or `model` or `weights` with several configs.
    """
    told = known_names("check", options, frozenset(CheckOptions.__annotations__))
    found = None if str(settings_file) == "none" else settings_file or discover(Path.cwd())
    settings = Settings() if found is None else read(Path(found), under_test)
    entries = {str(Path(e.split).resolve()): e for e in settings.entries() if e.split is not None}
    paths = [Path(p) for p in splits] or [Path(p) for p in entries]
    if not paths:
        raise UsageError("`splits` got nothing; name split configs or list them in partopt.toml")
    if len(paths) > 1 and (told.get("model") or told.get("weights")):
        raise UsageError("`model` and `weights` fit one split config; list several in partopt.toml")
    if len(paths) > 1 and told.get("profile"):
        raise UsageError("`profile` fits one split config; list several in partopt.toml")
    results = []
    for path in paths:
        entry = entries.get(str(path.resolve()))
        given = dict(told)
        try:
            if entry is None:
                entry = _nearest_entry(settings, SplitConfig.read(path).model.spec)
            for name in ("latency", "latency_tolerance", "profile"):
                value = getattr(entry, name)
                if value is not None:
                    given.setdefault(name, value)
            policy = _policy_of(entry, Path(found).name if found is not None else None)
            if entry not in settings.entries():  # the config's own word, not the settings'
                policy = replace(policy, model=None)
            request = CheckRequest.of((terms or Policy()).over(policy), given)
            results.append(check_one(path, request, watcher))
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


def _checked(result: CheckResult, deployed: Deployed, request: CheckRequest) -> Checked | None:
    """Load and trace what the policy names; None, with the reason noted, if it is another thing."""
    config, policy, model = deployed.config, request.policy, request.model
    if model is None and policy.model not in (None, config.model.spec):
        result.add(
            "model",
            "undecided",
            f"the split config deploys {config.model.spec!r}, {policy.source} names "
            f"{policy.model!r}; run find again",
        )
        return None
    if model is None and policy.model is None:
        hold_trusted(config.model.spec, request.trust_model)
    weights = policy.weights or ("DEFAULT" if model is not None else weights_of(config))
    if weights == "none" and policy.weights is None:
        result.add(
            "weights",
            "undecided",
            "the split config was made with random weights; if that is meant, say --weights none",
        )
        return None
    loaded = load(
        ModelRequest(
            spec=model or config.model.spec,
            weights=weights,
            require_weights=True,
            trust_model=request.trust_model,
            mean=policy.mean,
            std=policy.std,
            input_size=policy.input_size,
            seed=policy.seed or 0,
        )
    )
    graph = loaded.trace()
    if not _preprocessing_holds(result, config, loaded):
        return None
    cut = _graph_holds(result, deployed.cut, graph)
    if cut is None:
        return None
    if request.profile is not None:
        request.profile.hold(graph, loaded.spec)
    same = _weights_same(result, config, loaded, graph)
    terms = policy.terms(config, pick_accelerator("auto"))
    return Checked(
        config=config,
        latency=deployed.latency,
        policy=policy,
        terms=terms,
        model=loaded,
        graph=graph,
        cut=cut,
        cuts=terms.cuts(graph, cut),
        same=same,
        profile=request.profile,
    )


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


def _graph_holds(result: CheckResult, stored: CutInfo, graph: LayerGraph) -> Cut | None:
    try:
        cut = graph.cut(stored.name)
        boundary_nodes(graph, cut)
    except CutError as error:
        result.add("graph", "undecided", str(error))
        return None
    want = [(t.name, tuple(t.shape), t.dtype) for t in stored.boundary]
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
    result: CheckResult, checked: Checked, safe: set[str] | None, tolerance: float | None
) -> None:
    rows = checked.config.cuts if result.found is None else result.found.config.cuts
    now = None
    if checked.profile is not None:
        now = drift.profiled(result, checked, checked.profile, tolerance)
    elif tolerance is None:
        result.add("latency", "skipped", "switched off")
    else:
        now = drift.latency_holds(result, checked, tolerance)
    there = {row.name for row in rows}
    cuts = checked.cuts if now is not None else [c for c in checked.cuts if c.name in there]
    candidates = drift.candidates(checked, cuts, rows, now)
    drift.still_pays(result, checked, candidates)
    if safe is None:
        result.add("best cut", "skipped", "no evidence to choose on")
        return
    drift.still_best(result, checked, candidates, drift.leaks(rows, safe))
