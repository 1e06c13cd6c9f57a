"""When a cut is safe. Fails closed.

A cut's leakage is the largest score over all attackers. The remaining layers are public, so whoever
can invert a later cut can invert this one: what counts is the largest over this and all later cuts.
A cut is safe only if the upper end of that interval is below the threshold and every attacker of
the panel ran at full budget here and at every later cut. A missing or failed result leaks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..attackers.scoring import Score
from ..config import Attack, Status

TEXT = (
    "safe only if the upper end of the interval of the largest score over all attackers, here and "
    "at every later cut, is below the threshold, every attacker having run at full budget; a "
    "missing or failed result counts as leaking"
)


@dataclass(frozen=True)
class Evidence:
    """What one attacker gave at one cut: a score, or None where it failed.

    ``complete`` is False for an attack that stopped as soon as the leak was proven.
    """

    score: Score | None
    complete: bool

    @classmethod
    def of(cls, attack: Attack, scale: str, interval: bool = True) -> Evidence:
        """What a recorded attack is worth to the rule; no score or interval is a failure.

        Without `interval` the mean alone counts, as in the published rule.
        """
        if attack.score is None or attack.low is None or attack.high is None:
            return cls(None, False)
        low, high = (attack.low, attack.high) if interval else (attack.score, attack.score)
        result = Score(
            attack.ssim_raw or 0.0, attack.ssim_p95 or 0.0, attack.ssim_max or 0.0,
            attack.score, low, high, scale,
        )  # fmt: skip
        return cls(result, attack.outcome == "full budget")


@dataclass(frozen=True)
class Verdict:
    """The rule applied to one cut. Scores are None where nothing is known."""

    value: float | None
    low: float | None
    high: float | None
    suffix_value: float | None
    suffix_high: float
    suffix_low: float
    complete: bool
    status: Status
    reason: str

    @property
    def safe(self) -> bool:
        """Whether the cut may be used."""
        return self.status == "safe"


def judge(
    names: Sequence[str],
    panel: Sequence[str],
    evidence: Mapping[tuple[int, str], Evidence],
    threshold: float,
) -> list[Verdict]:
    """Apply the rule to every cut.

    Args:
        names: Cut names in execution order.
        panel: Names of the attackers that must have run.
        evidence: By (cut index, attacker).
        threshold: Scores at or above it leak.
    """
    verdicts: list[Verdict] = []
    high_after, low_after, value_after = -math.inf, -math.inf, None
    worst_after = ""
    all_complete = True
    gap = ""
    blocked = ""  # the last cut with complete evidence that is not safe
    for i in reversed(range(len(names))):
        found = {a: evidence[i, a] for a in panel if (i, a) in evidence}
        scores = [e.score for e in found.values() if e.score is not None]
        complete = all(
            a in found and found[a].complete and found[a].score is not None for a in panel
        )
        value = max((s.value for s in scores), default=None)
        low = max((s.low for s in scores), default=None)
        high = max((s.high for s in scores), default=None)
        if value is not None and (value_after is None or value > value_after):
            value_after = value
        low_after = max(low_after, low if low is not None else -math.inf)
        own_high = high if high is not None and complete else math.inf
        if own_high > high_after:
            high_after, worst_after = own_high, names[i]
        if not complete and all_complete:
            all_complete, gap = False, names[i]
        failed = any(e.score is None for e in found.values())
        status, reason = _status(
            names[i], low, low_after, high_after, worst_after, threshold,
            complete, all_complete, gap, failed, bool(found), blocked,
        )  # fmt: skip
        if status != "safe" and complete and not blocked:
            blocked = names[i]
        verdicts.append(
            Verdict(value, low, high, value_after, high_after, low_after, complete, status, reason)
        )
    return verdicts[::-1]


def _status(
    name: str,
    low: float | None,
    suffix_low: float,
    suffix_high: float,
    worst: str,
    threshold: float,
    complete: bool,
    all_complete: bool,
    gap: str,
    failed: bool,
    attacked: bool,
    blocked: str,
) -> tuple[Status, str]:
    if low is not None and low >= threshold:
        return "leaks", "proven here"
    if suffix_low >= threshold:
        return "leaks", "proven at a later cut"
    if all_complete and suffix_high < threshold:
        return "safe", "below the threshold here and later"
    if failed:
        return "failed", "an attack failed: counts as leaking"
    if not complete and blocked:
        return "undecided", f"a later cut, {blocked}, is not proven safe"
    if not complete and not attacked:
        return "not attacked", "counts as leaking"
    if not complete:
        return "not attacked", "not every attacker ran: counts as leaking"
    if not all_complete:
        return "undecided", f"not every attacker ran at {gap}: counts as leaking"
    where = "here" if worst == name else f"at {worst}"
    return "undecided", f"the interval {where} reaches the threshold: counts as leaking"
