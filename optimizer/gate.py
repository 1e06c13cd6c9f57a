"""Whether a cut under test protects, and by which evidence.

Nothing of the split config that decides is believed: the terms come from a `Policy`, evidence from
attacks, or from what this machine stored of its own. Only on an explicit word do the config's
figures count, and then only where they are those of the terms.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..attackers.features import FeatureStore
from ..cache import nothing_cached
from ..config import SplitConfig
from ..datasets import GENERATED, ImageSet, Split, load_images
from ..graph import Cut, LayerGraph
from ..models import LoadedModel
from . import drift
from .checked import CheckResult
from .find import SplitResult, Watcher, find
from .keys import attack_key, plugin_source
from .minima import grant_of
from .policy import Policy, Terms, laxer
from .rule import Evidence, judge
from .sweep import may_leak


@dataclass(frozen=True)
class Subject:
    """A split config, the model that it is held against, and the terms.

    Attributes:
        deployed: The cut under test.
        cuts: All cuts that must be judged, the deployed one among them.
        same: Whether graph and weights are those that the config names.
    """

    config: SplitConfig
    loaded: LoadedModel
    graph: LayerGraph
    policy: Policy
    terms: Terms
    deployed: Cut
    cuts: list[Cut]
    same: bool


@dataclass(frozen=True)
class How:
    """Where evidence may come from.

    Attributes:
        attack: False never attacks.
        reattack: Nothing stored is evidence: every attack is run, in an empty cache.
        new_data: Images other than those of the evidence are accepted.
        storage, workers, watcher: As for `find`.
    """

    attack: bool = True
    reattack: bool = False
    new_data: bool = False
    storage: str | None = None
    workers: int = 1
    watcher: Watcher | None = None


def privacy(result: CheckResult, subject: Subject, how: How) -> set[str] | None:
    """Decide on privacy; names of the safe cuts, or None where there is nothing to choose on."""
    policy, terms = subject.policy, subject.terms
    reasons = laxer(subject.config, terms, subject.cuts, subject.loaded)
    trusted = policy.trust_stored and subject.same and not (how.reattack or how.new_data)
    if trusted and not reasons:
        reasons = _foreign(subject)
    if reasons:
        result.add(
            "policy",
            "skipped",
            f"the split config is not believed: {'; '.join(reasons)}; held to {terms.text}, by "
            f"{policy.source}",
        )
    else:
        result.add("policy", "holds", f"{terms.text}, by {policy.source}")
    if trusted and not reasons:
        return stored_evidence(result, subject.config, terms, subject.deployed.name)
    return _own_evidence(result, subject, how)


def _foreign(subject: Subject) -> list[str]:
    """Stored attacks that are not those of these terms on this model, by their keys."""
    config, terms, p = subject.config, subject.terms, subject.config.privacy
    if subject.policy.data is None:
        split = Split(**p.images)
        images = ImageSet(np.empty((0, 3, 0, 0), np.uint8), split, p.data, p.data_hash)
    else:
        images = load_images(
            subject.policy.data,
            subject.loaded.preprocessing,
            terms.budget.split,
            seed=terms.seed,
            minimum=terms.budget.minimum_images,
        )
    loaded = subject.loaded
    store = FeatureStore(Path(), subject.graph, loaded.preprocessing, images, loaded.weights_hash)
    rows, side, wrong = {row.name: row for row in config.cuts}, terms.side(loaded), []
    for cut in subject.cuts:
        for attack in rows[cut.name].attacks:
            attacker = terms.panel.get(attack.attacker)
            if attacker is None or attack.score is None:
                continue
            safer = attacker.safer()
            meant = {repr(attacker), repr(safer)} if safer is not None else {repr(attacker)}
            key = attack_key(
                cut, store.key, attack.settings, plugin_source(attacker), side, terms.seed
            )
            if attack.key != key or (attack.settings not in meant and not p.tuned):
                wrong.append(f"{attack.attacker} at {cut.name}")
    some = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
    return [f"stored attacks are not those of these terms: {some}"] if wrong else []


def stored_evidence(
    result: CheckResult, config: SplitConfig, terms: Terms, deployed: str
) -> set[str]:
    """Apply the rule to the stored figures, on an explicit word; stored verdicts never count."""
    protocol = terms.protocol
    evidence = {
        (i, a.attacker): Evidence.of(a, protocol.scale, protocol.interval)
        for i, row in enumerate(config.cuts)
        for a in row.attacks
    }
    names = [row.name for row in config.cuts]
    p = config.privacy
    grant = grant_of(Split(**p.images), {}, p.evidence, protocol.budgets)
    unplaced = {i: row.unplaced for i, row in enumerate(config.cuts) if row.unplaced}
    verdicts = judge(names, list(terms.panel), evidence, protocol.threshold, grant, unplaced)
    verdict = verdicts[names.index(deployed)]
    suspect = may_leak(config.sweep, protocol.threshold)
    if verdict.safe and suspect is not None:
        why = f"{suspect}, which was only swept, may leak"
        result.add("privacy", "regressed", f"stored evidence does not protect: {why}")
        return set()
    if verdict.safe:
        result.add(
            "privacy",
            "holds",
            f"stored evidence ({config.privacy.evidence}), believed as asked: at most "
            f"{verdict.suffix_high:.2f} here and later, below {protocol.threshold:g}",
        )
    else:
        result.add("privacy", "regressed", f"stored evidence does not protect: {verdict.reason}")
    return {name for name, v in zip(names, verdicts, strict=True) if v.safe}


def _own_evidence(result: CheckResult, subject: Subject, how: How) -> set[str] | None:
    """What this machine stored of its own attacks, and attacks for what is missing."""
    config, terms = subject.config, subject.terms
    made_on = config.privacy.data
    if subject.policy.data is None and not made_on.startswith(GENERATED):
        result.add(
            "privacy",
            "undecided",
            f"the evidence was made on {made_on!r}: give these images with --data or as `data` in "
            "the settings, or say --trust-stored to believe the split config",
        )
        return None
    if terms.tune and not how.attack:
        result.add("privacy", "undecided", "`tune` is asked for and attacks are switched off")
        return None
    with nothing_cached() if how.reattack else contextlib.nullcontext():
        found = _find(subject, how)
    result.found = found
    by_name = dict(zip((c.name for c in found.cuts), found.verdicts, strict=True))
    verdict = by_name[subject.deployed.name]
    ran = found.config.search.trials_run
    said = (
        f"attacked again at budget {terms.budget.name}"
        if ran or how.reattack
        else f"by this machine's own attacks at budget {terms.budget.name}"
    )
    limit = terms.protocol.threshold
    if verdict.safe:
        result.add(
            "privacy",
            "holds",
            f"{said}: at most {verdict.suffix_high:.2f} here and later, below {limit:g}",
        )
        return {name for name, v in by_name.items() if v.safe}
    if verdict.status == "leaks":
        reached = max(verdict.low or 0.0, verdict.suffix_low)
        result.add(
            "privacy",
            "regressed",
            f"{said}: {verdict.reason}, at least {reached:.2f} against {limit:g}",
        )
    elif not how.attack:
        result.add(
            "privacy",
            "undecided",
            f"this machine lacks attacks at these terms ({verdict.reason}); check without "
            "--no-attack, or say --trust-stored to believe the split config",
        )
    else:
        result.add("privacy", "regressed", f"{said}: {verdict.reason}")
    return None


def _find(subject: Subject, how: How) -> SplitResult:
    """Run `find` at the policy's terms, the deployed cut's strongest attacker first."""
    config, terms = subject.config, subject.terms
    latency = config.latency_ms
    assert latency is not None
    scored = {a.attacker: a.score for a in config.privacy.attacks if a.score is not None}
    names = list(terms.panel)
    strongest = max(names, key=lambda n: scored.get(n, -1.0))
    as_made = (config.privacy.budget, config.seed) == (terms.budget.name, terms.seed)
    protocol = terms.protocol
    return find(
        subject.loaded,
        ssim=protocol.threshold,
        protocol=protocol.name,
        data=subject.policy.data,
        cuts=[cut.name for cut in subject.cuts],
        budget=terms.budget.name,
        resolution=terms.resolution,
        scale=protocol.scale,
        attackers=names,
        threads=latency.threads,
        batch=latency.batch,
        storage=how.storage,
        workers=how.workers,
        seed=terms.seed,
        tune=terms.tune,
        first=(subject.deployed.name, strongest),
        expected_data=config.privacy.data_hash if as_made and not how.new_data else None,
        times=drift.stored_times(config, subject.cuts),
        attack=how.attack,
        watcher=how.watcher,
    )
