"""The two sets of rules a run can follow: ours, strict, and the published one, paper.

The published one is that of Rajasekar et al. (arXiv:2404.07437): the c-GAN alone, raw SSIM, mean
over test images, threshold 0.2, the published cut points, 1,000 training images, 200 epochs; the
cut is the earliest point from which on the mean stays below the threshold. It knows neither a floor
nor an interval nor a second attacker, so its answer certifies nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..arguments.choices import ProtocolName, ScaleName, one_of
from ..errors import UsageError
from ..images.load import Split
from .budgets import BUDGETS, Budget
from .rule import TEXT

PUBLISHED_THRESHOLD = 0.2
PUBLISHED_TEXT = (
    "published: safe if the c-GAN's raw SSIM, mean over the test images, is below the threshold "
    "here and at every later published point; no floor, no interval, no other attacker; a missing "
    "or failed result counts as leaking"
)
_SIZE = Split(1000, 150, 250)  # the paper's training images, our validation and test images
PUBLISHED_BUDGETS = {
    # For machines without a GPU: labelled as screening wherever it is shown.
    "quick": Budget(
        "quick", "screening", Split(192, 32, 48), 96, 100, {"cgan": {"epochs": 5, "width": 32}}
    ),
    "standard": Budget("standard", "screening", _SIZE, None, 100, {"cgan": {"epochs": 200}}),
    "full": Budget("full", "screening", _SIZE, None, 100, {"cgan": {"epochs": 200}}),
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a run goes by.

    Attributes:
        name: ``strict`` or ``paper``.
        threshold: Scores at or above it leak.
        scale: ``corrected`` or ``raw``.
        interval: Whether the upper end of the interval counts, or the mean alone.
        rule: In words, for the result.
        cuts: Kind of cuts or names.
        attackers: Names, or None for the budget's panel.
        budgets: Levels of effort by name.
    """

    name: ProtocolName
    threshold: float
    scale: ScaleName
    interval: bool
    rule: str
    cuts: str | Sequence[str]
    attackers: list[str] | None
    budgets: Mapping[str, Budget]


def protocol_of(
    name: ProtocolName,
    *,
    ssim: float | None = None,
    scale: ScaleName | None = None,
    cuts: str | Sequence[str] | None = None,
    attackers: Sequence[str] | None = None,
) -> Protocol:
    """The protocol called `name`, with what else was asked for; None where nothing was.

    Raises:
        UsageError: Unknown protocol, or a choice that the published protocol has made already.
    """
    one_of("protocol", name, ProtocolName)
    one_of("scale", scale, ScaleName)
    if name == "strict":
        return Protocol(
            name=name,
            threshold=PUBLISHED_THRESHOLD if ssim is None else ssim,
            scale=scale or "corrected",
            interval=True,
            rule=TEXT,
            cuts="clean" if cuts is None else cuts,
            attackers=list(attackers) if attackers else None,
            budgets=BUDGETS,
        )
    fixed = {
        "ssim": (ssim, PUBLISHED_THRESHOLD),
        "scale": (scale, "raw"),
        "attackers": (list(attackers) if attackers else None, ["cgan"]),
        "cuts": (cuts if cuts == "clean" or cuts == "all" or cuts == "stage" else None, "paper"),
    }
    for what, (given, published) in fixed.items():
        if given is not None and given != published:
            raise UsageError(
                f"`{what}` got {given!r}, but protocol paper means {published!r}; leave it out"
            )
    return Protocol(
        name=name,
        threshold=PUBLISHED_THRESHOLD,
        scale="raw",
        interval=False,
        rule=PUBLISHED_TEXT,
        cuts="paper" if cuts is None else cuts,
        attackers=["cgan"],
        budgets=PUBLISHED_BUDGETS,
    )
