"""When a cut is safe. Fails closed.

A cut's leakage is the largest score over all attackers. The remaining layers are public, so whoever
can invert a later cut can invert this one: what counts is the largest over this and all later cuts.
A cut is safe only if the upper end of that interval is below the threshold and every attacker of
the panel ran at full budget here and at every later cut. A missing or failed result leaks. Where a
search says so, an earlier cut that was attacked in full stands for a later one: what crosses there
is computed from what crosses before. The later cut then has the earlier one's upper end, or that of
the cheap attackers that ran at it, whichever is larger.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..attackers.scoring import Score
from ..config import Attack, Status
from .limits import Doubt

TEXT = (
    "safe only if the upper end of the interval of the largest score over all attackers, here and "
    "at every later cut, is below the threshold, every attacker having run at full budget; a "
    "missing or failed result counts as leaking, and so do an image that is as good as copied, a "
    "limit on single images that is passed, and an attack that would reach the threshold with as "
    "many images as an adversary has"
)


@dataclass(frozen=True)
class Evidence:
    """What one attacker gave at one cut: a score, or None where it failed.

    ``complete`` is False for an attack that stopped as soon as the leak was proven. ``rising``
    names an attacker that was still getting better when its budget ended.
    """

    score: Score | None
    complete: bool
    rising: str = ""

    @classmethod
    def of(cls, attack: Attack, scale: str, interval: bool = True) -> Evidence:
        """What a recorded attack is worth to the rule; no score or interval is a failure.

        Without `interval` the mean alone counts, as in the published rule.
        """
        if attack.score is None or attack.low is None or attack.high is None:
            return cls(None, False)
        low, high = (attack.low, attack.high) if interval else (attack.score, attack.score)
        result = Score(
            raw=attack.ssim_raw or 0.0,
            p95=attack.ssim_p95 or 0.0,
            largest=attack.ssim_max or 0.0,
            value=attack.score,
            low=low,
            high=high,
            scale=scale,
        )
        rising = attack.attacker if attack.rising else ""
        return cls(result, attack.outcome == "full budget", rising)


@dataclass(frozen=True)
class Grant:
    """What the cuts of a run that pass the rule may be called, and what it had too little of.

    Attributes:
        status: ``safe``, ``screened`` or ``undecided``.
        shortfall: One sentence with the number that would settle it; empty for ``safe``.
    """

    status: Status = "safe"
    shortfall: str = ""


@dataclass(frozen=True)
class Cover:
    """Cuts for which an earlier one, attacked in full, may stand.

    Attributes:
        cuts: Their indices.
        attackers: Those that must have run at them all the same.
    """

    cuts: Collection[int] = ()
    attackers: Sequence[str] = ()


PASSED = ("safe", "screened")


@dataclass(frozen=True)
class Verdict:
    """The rule applied to one cut. Scores are None where nothing is known.

    ``complete``: every attacker ran in full. ``covered_by`` names the earlier cut that stands for
    one where they did not; ``high`` is then still what was measured here.
    """

    value: float | None
    low: float | None
    high: float | None
    suffix_value: float | None
    suffix_high: float
    suffix_low: float
    complete: bool
    status: Status
    reason: str
    unplaced: str = ""
    covered_by: str = ""

    @property
    def safe(self) -> bool:
        """Whether the cut may be used; `status` says whether it is certified or screened."""
        return self.status in PASSED


@dataclass(frozen=True)
class _Found:
    """What is known of one cut and of those after it, for its status.

    Attributes:
        name: Of the cut.
        low: Lower end here.
        suffix_low, suffix_high: Ends here and later; infinite where evidence is missing.
        worst: Name of the cut where `suffix_high` is.
        complete: Whether the panel ran in full here, or an earlier cut stands for this one.
        gap: The last cut where that is not so; empty where there is none.
        failed: Whether an attack failed here.
        attacked: Whether there is any evidence here.
        blocked: The last cut after this one that has complete evidence and is not safe.
        unplaced: Why attackers that learn from pairs settle nothing here; empty where they do.
    """

    name: str
    low: float | None
    suffix_low: float
    suffix_high: float
    worst: str
    complete: bool
    gap: str
    failed: bool
    attacked: bool
    blocked: str
    unplaced: str = ""


def judge(
    names: Sequence[str],
    panel: Sequence[str],
    evidence: Mapping[tuple[int, str], Evidence],
    threshold: float,
    grant: Grant | None = None,
    unplaced: Mapping[int, str] | None = None,
    doubts: Mapping[int, Doubt] | None = None,
    cover: Cover | None = None,
) -> list[Verdict]:
    """Apply the rule to every cut.

    Args:
        names: Cut names in execution order.
        panel: Names of the attackers that must have run.
        evidence: By (cut index, attacker).
        threshold: Scores at or above it leak.
        grant: What a cut that passes may be called; None is safe.
        unplaced: Cuts at which attackers that learn from pairs settle nothing and no other one
            ran, by index, and why: evidence there proves leaks alone.
        doubts: Cuts that are not safe for another reason than their mean score, by index.
        cover: Cuts for which an earlier one may stand; None is none.
    """
    grant, unplaced, doubts = grant or Grant(), unplaced or {}, doubts or {}
    full = [
        i not in unplaced and all(_ran(evidence.get((i, a))) for a in panel)
        for i in range(len(names))
    ]
    standing = _standing(full, evidence, unplaced, cover or Cover())
    verdicts: list[Verdict] = []
    high_after, low_after, value_after = -math.inf, -math.inf, None
    worst_after = gap = ""
    rising = ""  # who was still rising, here or later
    doubt: Doubt | None = None  # here or later
    blocked = ""  # the last cut with complete evidence that is not safe
    for i in reversed(range(len(names))):
        found = {a: evidence[i, a] for a in panel if (i, a) in evidence}
        scores = [e.score for e in found.values() if e.score is not None]
        nowhere, by = unplaced.get(i, ""), standing.get(i)
        complete = full[i] or by is not None
        value = max((s.value for s in scores), default=None)
        low = max((s.low for s in scores), default=None)
        high = max((s.high for s in scores), default=None)
        if value is not None and (value_after is None or value > value_after):
            value_after = value
        low_after = max(low_after, low if low is not None else -math.inf)
        own_high = high if high is not None and complete else math.inf
        if by is not None:
            own_high = max(own_high, _highest(evidence, by, panel))
        if own_high > high_after:
            high_after, worst_after = own_high, names[i]
        if not complete and not gap:
            gap = names[i]
        here = _Found(
            name=names[i],
            low=low,
            suffix_low=low_after,
            suffix_high=high_after,
            worst=worst_after,
            complete=complete,
            gap=gap,
            failed=any(e.score is None for e in found.values()),
            attacked=bool(found),
            blocked=blocked,
            unplaced=nowhere,
        )
        status, reason = _status(here, threshold)
        for j in (by, i):  # what is doubtful where a cut is stood for is doubtful here
            if j is None:
                continue
            who = next((e.rising for a in panel if (e := evidence.get((j, a))) and e.rising), "")
            rising = f"{who} at {names[j]}" if who else rising
            doubt = _graver(doubt, doubts.get(j), names[j])
        if status == "safe" and doubt is not None:
            status = "leaks" if doubt.proven else "undecided"
            reason = doubt.reason if doubt.proven else f"{doubt.reason}: counts as leaking"
        if status == "safe" and grant.status == "safe" and rising:
            status = "undecided"
            reason = f"{rising} was still rising when its budget ended: counts as leaking"
        if status != "safe" and complete and not blocked:
            blocked = names[i]
        if status == "safe" and by is not None:
            reason += f"; {names[by]}, from which this is computed, was attacked in full for it"
        if status == "safe" and grant.status != "safe":
            status, reason = grant.status, f"{reason}, but {grant.shortfall}"
        verdicts.append(
            Verdict(
                value=value,
                low=low,
                high=high,
                suffix_value=value_after,
                suffix_high=high_after,
                suffix_low=low_after,
                complete=full[i],
                status=status,
                reason=reason,
                unplaced=nowhere,
                covered_by="" if by is None else names[by],
            )
        )
    return verdicts[::-1]


def _ran(evidence: Evidence | None) -> bool:
    return evidence is not None and evidence.complete and evidence.score is not None


def _standing(
    full: Sequence[bool],
    evidence: Mapping[tuple[int, str], Evidence],
    unplaced: Mapping[int, str],
    cover: Cover,
) -> dict[int, int]:
    """For each cut that is stood for, the nearest earlier one that was attacked in full."""
    found: dict[int, int] = {}
    last: int | None = None
    for i, complete in enumerate(full):
        if complete:
            last = i
        elif (
            last is not None
            and i in cover.cuts
            and i not in unplaced
            and all(_ran(evidence.get((i, a))) for a in cover.attackers)
            and not any(j == i and e.score is None for (j, _), e in evidence.items())
        ):
            found[i] = last
    return found


def _highest(
    evidence: Mapping[tuple[int, str], Evidence], index: int, panel: Sequence[str]
) -> float:
    scores = [e.score for a in panel if (e := evidence.get((index, a))) is not None]
    return max((s.high for s in scores if s is not None), default=math.inf)


def _graver(later: Doubt | None, own: Doubt | None, name: str) -> Doubt | None:
    """The doubt that counts at a cut: its own, unless only the later one is proven."""
    if own is None or (later is not None and later.proven and not own.proven):
        return later
    return Doubt(f"at {name} {own.reason}", own.proven)


def _status(here: _Found, threshold: float) -> tuple[Status, str]:
    if here.low is not None and here.low >= threshold:
        return "leaks", "proven here"
    if here.suffix_low >= threshold:
        return "leaks", "proven at a later cut"
    if not here.gap and here.suffix_high < threshold:
        return "safe", "below the threshold here and later"
    if here.failed:
        return "failed", "an attack failed: counts as leaking"
    if here.unplaced:
        return "undecided", (
            f"where its values lie in the picture could not be told ({here.unplaced}), and no "
            "attacker ran that needs not know: counts as leaking"
        )
    if not here.complete and here.blocked:
        return "undecided", f"a later cut, {here.blocked}, is not proven safe"
    if not here.complete and not here.attacked:
        return "not attacked", "counts as leaking"
    if not here.complete:
        return "not attacked", "not every attacker ran: counts as leaking"
    if here.gap:
        return "undecided", f"not every attacker ran at {here.gap}: counts as leaking"
    where = "here" if here.worst == here.name else f"at {here.worst}"
    return "undecided", f"the interval {where} reaches the threshold: counts as leaking"
