"""How much attack a verdict asks for: fewer images or epochs make the same cut look safer.

The interval of a score says how much the sample of test images may mislead, not how weak the
attacker was: it narrows around too small a number as training images get fewer. So no cut is called
`safe` by a run that had less than ``standard`` has, nor `screened` by one that had less than
``quick`` has, whatever its scores are.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..attackers.base import Attacker
from ..images.load import Split
from .budgets import Budget, EvidenceLevel, epochs_of
from .rule import Grant

_PARTS = {"train": "training", "validation": "validation", "test": "test"}


def short_of(level: Budget, split: Split, panel: Mapping[str, Attacker]) -> list[str]:
    """What a run had less of than `level` has: images of each part, epochs of each attacker."""
    found = []
    for part, word in _PARTS.items():
        have, wanted = getattr(split, part), getattr(level.split, part)
        if have < wanted:
            found.append(f"{have} of {wanted} {word} images")
    for name, attacker in panel.items():
        most, asked = epochs_of(attacker), level.epochs(name)
        if most is not None and asked is not None and most < asked:
            found.append(f"{most} of {asked} epochs of {name}")
    return found


def grant_of(
    split: Split,
    panel: Mapping[str, Attacker],
    evidence: EvidenceLevel,
    budgets: Mapping[str, Budget],
) -> Grant:
    """What cuts may be called that pass the rule.

    Args:
        split: How many images there were.
        panel: The attackers that ran; empty where their settings are not known.
        evidence: What the run's results are worth.
        budgets: Levels of effort by name; ``quick`` is the least that screens.
    """
    screening = budgets["quick"]
    short = short_of(screening, split, panel)
    if short:
        return Grant(
            "undecided",
            f"the run had {', '.join(short)}, and so few make any cut look safe; "
            f"{screening.split.total} images and the epochs of budget quick would screen it",
        )
    if evidence == "screening":
        certifying = budgets["standard"]
        wanted = f"--budget standard with {certifying.split.total} images"
        if certifying.evidence == "screening":
            wanted = "--protocol strict --budget standard"
        return Grant("screened", f"this was a screening; {wanted} could certify it")
    return Grant()
