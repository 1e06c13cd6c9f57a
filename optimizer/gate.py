"""Whether a cut under test protects, and by which evidence.

Nothing of the split config that decides is believed: the terms come from a `Policy`, evidence from
attacks, or from what this machine stored of its own. Only on an explicit word do the config's
numbers count, and then only where they are those of the terms.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from ..attackers.base import Attacker
from ..attackers.decoder import Decoder
from ..attackers.features import FeatureStore
from ..attackers.sketch import Sketch
from ..cache import nothing_cached
from ..config import SplitConfig
from ..images.load import GENERATED, ImageSet, Split, load_images
from . import drift
from .check_request import EvidenceSources
from .checked import Checked, CheckResult
from .confirm import curve_doubt
from .find import CEILING, SplitResult, find_cut
from .keys import attack_key, plugin_source
from .limits import Doubt, Held
from .minima import grant_of
from .plan import cheapest
from .policy import Terms, laxer
from .requests import CutChoice, Effort, FindRequest, ImageChoice, Timing
from .rule import Cover, Evidence, judge
from .sweep import may_leak
from .watcher import Watcher


def privacy(
    result: CheckResult, checked: Checked, sources: EvidenceSources, watcher: Watcher | None
) -> set[str] | None:
    """Decide on privacy; names of the safe cuts, or None where there is nothing to choose on."""
    policy, terms = checked.policy, checked.terms
    reasons = laxer(checked.config, terms, checked.cuts, checked.model)
    trusted = policy.trust_stored and checked.same and not (sources.reattack or sources.new_data)
    if trusted and not reasons:
        reasons = _foreign(checked)
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
        return stored_evidence(result, checked.config, terms, checked.cut.name)
    return _own_evidence(result, checked, sources, watcher)


def _foreign(checked: Checked) -> list[str]:
    """Stored attacks that are not those of these terms on this model, by their keys."""
    config, terms, p = checked.config, checked.terms, checked.config.privacy
    if checked.policy.data is None:
        split = Split(**p.images)
        images = ImageSet(np.empty((0, 3, 0, 0), np.uint8), split, p.data, p.data_hash)
    else:
        images = load_images(
            checked.policy.data,
            checked.model.preprocessing,
            terms.budget.split,
            seed=terms.seed,
            minimum=terms.budget.minimum_images,
        )
    loaded = checked.model
    store = FeatureStore(Path(), checked.graph, loaded.preprocessing, images, loaded.weights_hash)
    rows, sides, wrong = {row.name: row for row in config.cuts}, terms.sides(loaded), []
    for cut in checked.cuts:
        for attack in rows[cut.name].attacks:
            attacker = terms.panel.get(attack.attacker)
            if attacker is None or attack.score is None:
                continue
            safer = attacker.safer()
            meant = {repr(a) for a in (attacker, safer, *_longer(attacker)) if a is not None}
            key = attack_key(
                cut, store.key, attack.settings, plugin_source(attacker), sides, terms.seed
            )
            if attack.key != key or (attack.settings not in meant and not p.tuned):
                wrong.append(f"{attack.attacker} at {cut.name}")
    some = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
    return [f"stored attacks are not those of these terms: {some}"] if wrong else []


def _longer(attacker: Attacker) -> list[Attacker | None]:
    """The attacker as it may have been trained where it was still rising."""
    return [attacker.longer(times) for times in (2, 4) if times <= CEILING]


def stored_evidence(
    result: CheckResult, config: SplitConfig, terms: Terms, deployed: str
) -> set[str]:
    """Apply the rule to the stored scores, on an explicit word; stored verdicts never count."""
    protocol = terms.protocol
    evidence = {
        (i, a.attacker): Evidence.of(a, protocol.scale, protocol.interval)
        for i, row in enumerate(config.cuts)
        for a in row.attacks
    }
    names = [row.name for row in config.cuts]
    p = config.privacy
    evidence_is = "screening" if p.screens else p.evidence
    grant = grant_of(Split(**p.images), {}, evidence_is, protocol.budgets)
    unplaced = {i: row.unplaced for i, row in enumerate(config.cuts) if row.unplaced}
    held = _held(config, terms)
    doubts = _stored_doubts(config, held, deployed, curves=grant.status == "safe")
    panel = list(terms.panel)
    verdicts = judge(
        names, panel, evidence, protocol.threshold, grant, unplaced, doubts, _cover(config, terms)
    )
    verdict = verdicts[names.index(deployed)]
    suspect = may_leak(config.sweep, held)
    if verdict.safe and suspect is not None:
        why = f"{suspect}, which was only swept, may leak"
        result.add("privacy", "regressed", f"stored evidence does not protect: {why}")
        return set()
    if verdict.safe:
        result.status = verdict.status
        result.add(
            "privacy",
            "holds",
            f"{result.caveat}stored evidence ({evidence_is}), believed as asked: at most "
            f"{verdict.suffix_high:.2f} here and later, below {protocol.threshold:g}",
        )
    else:
        result.add("privacy", "regressed", f"stored evidence does not protect: {verdict.reason}")
    return {name for name, v in zip(names, verdicts, strict=True) if v.safe and v.complete}


def _cover(config: SplitConfig, terms: Terms) -> Cover:
    """For which rows an earlier one may stand: the terms allow it, and the sweep went over them."""
    if not terms.budget.cover or config.sweep is None:
        return Cover()
    swept = {
        cut.name
        for cut in config.sweep.cuts
        if {Sketch.name, Decoder.name} <= {a.attacker for a in cut.attacks}
    }
    rows = [i for i, row in enumerate(config.cuts) if row.covered_by and row.name in swept]
    return Cover(rows, cheapest({n: a.rank for n, a in terms.panel.items()}))


def _held(config: SplitConfig, terms: Terms) -> Held:
    """What stored attacks are held against besides the rule."""
    return Held(
        limits=terms.adversary.limits(copies=terms.protocol.name == "strict"),
        threshold=terms.protocol.threshold,
        scale=terms.protocol.scale,
        images=Split(**config.privacy.images).test,
    )


def _stored_doubts(
    config: SplitConfig, held: Held, deployed: str, curves: bool
) -> dict[int, Doubt]:
    """What stored attacks and learning curves say against cuts besides their mean scores."""
    found = {i: held.doubt(row.attacks) for i, row in enumerate(config.cuts)}
    for i, row in enumerate(config.cuts):
        if found[i] is None and (row.curve is not None or (curves and row.name == deployed)):
            found[i] = curve_doubt(row.curve, held.threshold)
    return {i: doubt for i, doubt in found.items() if doubt is not None}


def _own_evidence(
    result: CheckResult, checked: Checked, sources: EvidenceSources, watcher: Watcher | None
) -> set[str] | None:
    """What this machine stored of its own attacks, and attacks for what is missing."""
    config, terms = checked.config, checked.terms
    made_on = config.privacy.data
    if checked.policy.data is None and not made_on.startswith(GENERATED):
        result.add(
            "privacy",
            "undecided",
            f"the evidence was made on {made_on!r}: give these images with --data or as `data` in "
            "the settings, or say --trust-stored to believe the split config",
        )
        return None
    if terms.tune and not sources.attack:
        result.add("privacy", "undecided", "`tune` is asked for and attacks are switched off")
        return None
    with nothing_cached() if sources.reattack else contextlib.nullcontext():
        found = _find(checked, sources, watcher)
    result.found = found
    by_name = dict(zip((c.name for c in found.cuts), found.verdicts, strict=True))
    verdict = by_name[checked.cut.name]
    ran = found.config.search.trials_run
    said = (
        f"attacked again at budget {terms.budget.name}"
        if ran or sources.reattack
        else f"by this machine's own attacks at budget {terms.budget.name}"
    )
    limit = terms.protocol.threshold
    if verdict.safe:
        result.status = verdict.status
        result.add(
            "privacy",
            "holds",
            f"{result.caveat}{said}: at most {verdict.suffix_high:.2f} here and later, below "
            f"{limit:g}",
        )
        return {name for name, v in by_name.items() if v.safe and v.complete}
    if verdict.status == "leaks":
        reached = max(verdict.low or 0.0, verdict.suffix_low)
        result.add(
            "privacy",
            "regressed",
            f"{said}: {verdict.reason}, at least {reached:.2f} against {limit:g}",
        )
    elif not sources.attack:
        result.add(
            "privacy",
            "undecided",
            f"this machine lacks attacks at these terms ({verdict.reason}); check without "
            "--no-attack, or say --trust-stored to believe the split config",
        )
    else:
        result.add("privacy", "regressed", f"{said}: {verdict.reason}")
    return None


def _find(checked: Checked, sources: EvidenceSources, watcher: Watcher | None) -> SplitResult:
    """Run `find` at the policy's terms, the deployed cut's strongest attacker first."""
    config, terms = checked.config, checked.terms
    latency = checked.latency
    scored = {a.attacker: a.score for a in config.privacy.attacks if a.score is not None}
    names = list(terms.panel)
    strongest = max(names, key=lambda n: scored.get(n, -1.0))
    as_made = (config.privacy.budget, config.seed) == (terms.budget.name, terms.seed)
    protocol = terms.protocol
    return find_cut(
        FindRequest(
            model=checked.model,
            protocol=protocol.name,
            ssim=protocol.threshold,
            scale=protocol.scale,
            which_cuts=CutChoice(cuts=[cut.name for cut in checked.cuts]),
            images=ImageChoice(
                data=checked.policy.data,
                expected_data=(
                    config.privacy.data_hash if as_made and not sources.new_data else None
                ),
            ),
            effort=Effort(
                budget=terms.budget.name,
                attackers=names,
                resolution=terms.resolution,
                tune=terms.tune,
                workers=sources.workers,
                attack=sources.attack,
            ),
            timing=Timing(threads=latency.threads, batch=latency.batch),
            adversary=terms.adversary,
            storage=sources.storage,
            seed=terms.seed,
            first=(checked.cut.name, strongest),
            times=None if checked.profile is not None else drift.stored_times(checked),
            profile=checked.profile,
        ),
        watcher,
    )
