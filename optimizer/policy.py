"""What has to hold, said by somebody else than the split config under test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

from ..arguments.choices import BudgetName, ProtocolName, ScaleName, one_of
from ..attackers.base import Attacker
from ..attackers.panel import ATTACKERS
from ..attackers.scales import sides_at
from ..config import Privacy, SplitConfig
from ..graph.build import Cut, LayerGraph
from ..identity.network import of_this_scheme
from ..models.load import LoadedModel
from .budgets import Budget, budget_of
from .protocols import Protocol, protocol_of
from .requests import Adversary
from .result import ATTACK, attack_label

_SAID = "the command line"
_ORDER = get_args(BudgetName)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The terms of a check, from a settings file or the command line; None is not said.

    What is not said is built in: protocol strict, threshold 0.2, the budget that `find` takes by
    itself with its whole panel, seed 0, the model's own preprocessing, generated images,
    clean cuts.

    Attributes:
        source: Who said it, for messages.
        trust_stored: Whether the config's own scores may stand for an attack.
        model, weights, data: As for `find`.
    """

    source: str = "the built-in policy"
    protocol: ProtocolName | None = None
    ssim: float | None = None
    budget: BudgetName | None = None
    resolution: int | None = None
    scale: ScaleName | None = None
    attackers: Sequence[str] | None = None
    cuts: str | Sequence[str] | None = None
    max_cuts: int | None = None
    depth: int | None = None
    tune: int | None = None
    worst_share: float | None = None
    worst_retrieval: float | None = None
    adversary_images: int | None = None
    seed: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    input_size: int | None = None
    model: str | None = None
    weights: str | None = None
    data: str | None = None
    trust_stored: bool | None = None

    def __post_init__(self) -> None:
        one_of("protocol", self.protocol, ProtocolName)
        one_of("budget", self.budget, BudgetName)
        one_of("scale", self.scale, ScaleName)

    def over(self, other: Policy) -> Policy:
        """`other`, with what this one says in its place."""
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "source"}
        said = {name: value for name, value in said.items() if value is not None}
        if said and not other.source.startswith(_SAID):
            said["source"] = f"{_SAID} and {other.source}"
        return replace(other, **said)

    def terms(self, config: SplitConfig, accelerator: str) -> Terms:
        """The terms that `config` is held to.

        Where nothing is said, a config that promises more than the built-in terms is held to its
        promise: a lower threshold, a larger budget, further attackers of ours. It can only make the
        check stricter.

        Raises:
            UsageError: A term that there is none of.
        """
        promised = config.privacy
        ssim, budget, attackers = self.ssim, self.budget, self.attackers
        if self.protocol in (None, "strict") and promised.protocol == "strict":
            built_in = protocol_of("strict").threshold
            if ssim is None and 0 < promised.threshold < built_in:
                ssim = promised.threshold
            own = budget_of(None, accelerator).name
            budget = budget or max(own, promised.budget, key=_ORDER.index)
        protocol = protocol_of(
            self.protocol or "strict",
            ssim=ssim,
            scale=self.scale,
            cuts=self.cuts,
            attackers=attackers,
        )
        effort = budget_of(budget, accelerator, protocol.budgets)
        names = protocol.attackers
        if names is None:
            further = [a.name for a in promised.attackers if a.name in ATTACKERS]
            names = list(dict.fromkeys([*effort.settings, *further]))
        return Terms(
            protocol=protocol,
            budget=effort,
            panel=effort.panel(names),
            seed=self.seed or 0,
            tune=self.tune or 0,
            adversary=self._adversary(promised),
            resolution=self.resolution,
            max_cuts=24 if self.max_cuts is None else self.max_cuts,
            depth=self.depth,
        )

    def _adversary(self, promised: Privacy) -> Adversary:
        """What is asked of single images and more of them; a promise can only make it stricter."""

        def least(said: float | None, has: float | None) -> float | None:
            return said if said is not None else has if has is not None and 0 < has <= 1 else None

        return Adversary(
            worst_share=least(self.worst_share, promised.worst_share),
            worst_retrieval=least(self.worst_retrieval, promised.worst_retrieval),
            adversary_images=self.adversary_images,
        )


@dataclass(frozen=True, kw_only=True)
class Terms:
    """A policy with nothing left open; arguments of `find`."""

    protocol: Protocol
    budget: Budget
    panel: dict[str, Attacker]
    seed: int
    tune: int
    adversary: Adversary
    resolution: int | None
    max_cuts: int
    depth: int | None

    def cuts(self, graph: LayerGraph, deployed: Cut) -> list[Cut]:
        """The cuts that must be judged: the policy's own kind, and the one deployed."""
        listed = graph.cuts(self.protocol.cuts, max_cuts=self.max_cuts, depth=self.depth)
        return graph.cuts([*(c.name for c in listed), deployed.name])

    def side(self, loaded: LoadedModel) -> int:
        """The side in pixels that images are scored at."""
        own = loaded.preprocessing.input_size
        return self.resolution or min(own, self.budget.resolution or own)

    def sides(self, loaded: LoadedModel) -> tuple[int, ...]:
        """The sides in pixels at which pictures are compared."""
        fixed = self.resolution is not None or self.protocol.name == "paper"
        return sides_at(self.side(loaded), fixed)

    @property
    def text(self) -> str:
        """The terms in one phrase."""
        return (
            f"protocol {self.protocol.name}, below {self.protocol.threshold:g} "
            f"({self.protocol.scale}), budget {self.budget.name} with {', '.join(self.panel)}"
        )


def laxer(config: SplitConfig, terms: Terms, cuts: Sequence[Cut], loaded: LoadedModel) -> list[str]:
    """Why the evidence in `config` is not the policy's, each in one phrase; empty where it is.

    Args:
        config: The split config under test.
        terms: What it is held to.
        cuts: The cuts that the terms want judged.
        loaded: The model, loaded by the policy.
    """
    p, found = config.privacy, []
    if config.versions.get(ATTACK) != attack_label() or not of_this_scheme(config.model.graph_hash):
        found.append("the evidence was made by an older partopt or by one of other attackers")
    if p.threshold > terms.protocol.threshold:
        found.append(_other("threshold", p.threshold, terms.protocol.threshold))
    compared: list[tuple[str, Any, Any]] = [
        ("protocol", p.protocol, terms.protocol.name),
        ("scale", p.scale, terms.protocol.scale),
        ("budget", p.budget, terms.budget.name),
        ("resolution", p.resolution, terms.side(loaded)),
        ("sides", tuple(p.sides), terms.sides(loaded)),
        ("seed", config.seed, terms.seed),
    ]
    found += [_other(name, has, wanted) for name, has, wanted in compared if has != wanted]
    if p.tuned < terms.tune:
        found.append(_other("tune", p.tuned, terms.tune))
    wanted = terms.adversary.adversary_images
    if wanted is not None and (p.adversary_images or 0) < wanted:
        found.append(_other("adversary_images", p.adversary_images, wanted))
    has = {a.name: a.settings for a in p.attackers}
    lacking = [n for n, a in terms.panel.items() if has.get(n) != repr(a)]
    if lacking:
        found.append(f"made without the policy's {', '.join(lacking)}")
    rows = {row.name for row in config.cuts}
    left_out = [c.name for c in cuts if c.name not in rows]
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        found.append(f"it lists no attack on {', '.join(left_out[:3])}{more}")
    return found


def _other(what: str, has: Any, wanted: Any) -> str:
    return f"made with {what} {has}, the policy says {wanted}"
