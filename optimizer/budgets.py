"""How much attack a run pays for: image counts, resolution, attackers and their settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..arguments import numbers as arguments
from ..arguments.choices import BudgetName, one_of
from ..attackers.base import Attacker
from ..attackers.decoder import Decoder
from ..attackers.hybrid import Hybrid
from ..attackers.linear import Linear
from ..attackers.newton import Newton
from ..attackers.panel import make
from ..attackers.rmle import Rmle
from ..errors import UsageError
from ..images.load import Split

EvidenceLevel = Literal["screening", "standard", "full"]


@dataclass(frozen=True)
class Budget:
    """One level of effort.

    Attributes:
        name: ``quick``, ``standard`` or ``full``.
        evidence: What results are worth: ``screening`` does not certify.
        split: Image counts.
        resolution: Side in pixels at which images are rebuilt and scored; None is the model's own.
        minimum_images: Fewer usable images are an error.
        settings: Attackers of the panel with their settings, cheap ones first.
        others: Settings of attackers that run when they are asked for.
        sweep: Settings of the attacker `sketch`, which goes over cuts which were not sampled.
        cover: Settings of a small decoder for cuts after one that was attacked in full and stands
            for them; without, every cut is attacked in full.
    """

    name: BudgetName
    evidence: EvidenceLevel
    split: Split
    resolution: int | None
    minimum_images: int
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    sweep: dict[str, Any] = field(default_factory=dict)
    cover: dict[str, Any] = field(default_factory=dict)

    def epochs(self, name: str) -> int | None:
        """For how many epochs an attacker trains here; None: without epochs, or not in here."""
        settings = {**self.others, **self.settings}.get(name)
        return None if settings is None else epochs_of(make(name, settings))

    def panel(self, names: list[str] | None = None) -> dict[str, Attacker]:
        """The attackers by name, `blind` left out, cheap ones first."""
        wanted = arguments.names("attackers", names) or list(self.settings)
        known = {**self.others, **self.settings}
        made = [make(n, known.get(n)) for n in wanted if n != "blind"]
        if not made:
            raise UsageError(f"`attackers` got {names}; name one besides blind, which is the floor")
        return {a.name: a for a in sorted(made, key=lambda a: a.rank)}


def epochs_of(attacker: Attacker) -> int | None:
    """For how many epochs an attacker trains; None: it trains without epochs."""
    found = attacker.settings().get("epochs")
    return found if isinstance(found, int) else None


_QUICK_LINEAR = Linear(max_cells=40_000, max_terms=1300)
_QUICK_DECODER = Decoder(
    epochs=3,
    width=64,
    blocks=1,
    narrowest=24,
    batch=8,
    patience=0,
    crops=0,
    linear=_QUICK_LINEAR,
)
# White-box descent runs the head forwards and backwards for every step of every image.
_FEW_STEPS: dict[str, Any] = {
    "steps": 20,
    "batch": 8,
    "distances": ("l2",),
    "tuning_images": 8,
}
_RMLE: dict[str, Any] = {**_FEW_STEPS, "lr": 0.05, "tvs": (3.0, 0.3, 30.0), "restarts": 1}
# From a good start small steps go further.
_HYBRID: dict[str, Any] = {
    **_FEW_STEPS,
    "lr": 0.01,
    "tvs": (0.0, 1.0),
    "decoder": _QUICK_DECODER,
}
_DECODER = Decoder()
# Where the decoder's picture is better than all that the descent makes of it, it is soon kept.
_MORE_STEPS = Hybrid(
    steps=100,
    tvs=(0.0, 0.1, 3.0),
    levels=((0,), (2, 3, 4, 5)),
    distances=("l2",),
    tuning_images=8,
    decoder=_DECODER,
)
_FULL_DECODER = Decoder(epochs=14, width=256, patience=7, crops=4)

BUDGETS = {
    "quick": Budget(
        "quick",
        "screening",
        Split(256, 64, 80),
        96,
        100,
        {
            "linear": {"max_cells": 40_000, "max_terms": 1300},
            "newton": Newton(gain=0.02, linear=_QUICK_LINEAR).settings(),
            "decoder": _QUICK_DECODER.settings(),
        },
        {
            "cgan": {"epochs": 5, "width": 64},
            "rmle": _RMLE,
            "hybrid": _HYBRID,
            "ensemble": {**_FEW_STEPS, "hybrid": Hybrid(**_HYBRID), "rmle": Rmle(**_RMLE)},
        },
        {"max_cells": 12_000, "max_terms": 700, "ridges": (1e-2, 1e-1, 10.0)},
    ),
    "standard": Budget(
        "standard",
        "standard",
        Split(1000, 150, 250),
        None,
        400,
        {
            "linear": {},
            "newton": {},
            "decoder": _DECODER.settings(),
            "hybrid": _MORE_STEPS.settings(),
            # A second decoder costs as much as the first and brought 0.003.
            "stack": {"decoder": _DECODER, "hybrid": _MORE_STEPS, "seeds": (0,)},
        },
        {"ensemble": {"hybrid": _MORE_STEPS}},
        cover=_QUICK_DECODER.settings(),
    ),
    "full": Budget(
        "full",
        "full",
        Split(4000, 400, 600),
        None,
        1000,
        {
            "linear": {},
            "newton": {},
            "decoder": _FULL_DECODER.settings(),
            "cgan": {},
            "rmle": {},
            "hybrid": {"decoder": _FULL_DECODER},
            "stack": {"decoder": _FULL_DECODER, "hybrid": Hybrid(decoder=_FULL_DECODER)},
        },
        {"ensemble": {"hybrid": Hybrid(decoder=_FULL_DECODER)}},
    ),
}


def evidence_of(
    budget: Budget, panel: Collection[str], images: int, resolution: int
) -> EvidenceLevel:
    """What a run's results are worth: the label of the largest budget that the run had all of.

    Args:
        budget: The level asked for.
        panel: The attackers that ran by name, or their names alone; fewer epochs than a level has
            are less than that level.
        images: How many images there were.
        resolution: Side in pixels at which they were scored; below 112 nothing is certified.
    """
    if resolution < 112:
        return "screening"
    order: list[EvidenceLevel] = ["screening", "standard", "full"]

    def long_enough(level: Budget) -> bool:
        attackers = panel.items() if isinstance(panel, Mapping) else ()
        return all((epochs_of(a) or 0) >= (level.epochs(n) or 0) for n, a in attackers)

    levels = [
        order.index(b.evidence)
        for b in BUDGETS.values()
        if b.split.total <= images and set(b.settings) <= set(panel) and long_enough(b)
    ]
    return order[min(order.index(budget.evidence), max(levels, default=0))]


def budget_of(
    wanted: str | Budget | None,
    accelerator: str = "cpu",
    budgets: Mapping[str, Budget] | None = None,
) -> Budget:
    """The budget called `wanted`, or `wanted` itself; None is quick without a GPU, else standard.

    Raises:
        UsageError: There is none.
    """
    budgets = BUDGETS if budgets is None else budgets
    if isinstance(wanted, Budget):
        return wanted
    name = wanted or ("standard" if accelerator == "cuda" else "quick")
    one_of("budget", name, BudgetName)
    return budgets[name]
