"""What a check is asked for: what has to hold, where evidence may come from, what is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from ..arguments import numbers as arguments
from ..arguments.choices import BudgetName, known_names
from ..errors import UsageError
from ..profilers.target import TargetProfile
from .policy import Policy


class CheckOptions(TypedDict, total=False):
    """What `check` takes as keyword arguments, flat; None is the default.

    ``weights``, ``data``, ``ssim``, ``budget`` and ``trust_stored`` go before the policy's.
    """

    model: str | None
    weights: str | None
    data: str | Path | None
    ssim: float | None
    budget: BudgetName | None
    trust_stored: bool | None
    trust_model: bool | None
    attack: bool | None
    reattack: bool | None
    new_data: bool | None
    storage: str | None
    workers: int | None
    latency: bool | None
    latency_tolerance: float | None
    profile: TargetProfile | str | Path | None


@dataclass(frozen=True, kw_only=True)
class EvidenceSources:
    """Where evidence may come from.

    Attributes:
        attack: False never attacks: evidence that is not stored is then undecided.
        reattack: Nothing stored is evidence: every attack is run, in an empty cache and storage.
        new_data: Images other than those of the evidence are accepted, and attacked on.
        storage, workers: As for `find`.
    """

    attack: bool = True
    reattack: bool = False
    new_data: bool = False
    storage: str | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        arguments.whole("workers", self.workers, 1, arguments.MOST_WORKERS)
        if self.reattack and (self.storage is not None or not self.attack):
            beside = "--storage" if self.storage is not None else "--no-attack"
            raise UsageError(
                f"`reattack` got {beside} beside it, but uses nothing stored; leave one out"
            )


@dataclass(frozen=True, kw_only=True)
class CheckRequest:
    """A check, as it is asked for.

    Attributes:
        policy: What has to hold.
        model: Another model spec than the stored one.
        trust_model: Load a model that runs code of its own: a ``.pt2`` file, or a factory that the
            split config names and the policy does not.
        sources: Where evidence may come from.
        latency: False leaves latency out, for shared runners.
        latency_tolerance: How much the ratio to the full-enclave time of the same run may grow.
        profile: Where times come from, a file of `partopt profile`; None takes them here.
    """

    policy: Policy = field(default_factory=Policy)
    model: str | None = None
    trust_model: bool = False
    sources: EvidenceSources = field(default_factory=EvidenceSources)
    latency: bool = True
    latency_tolerance: float = 0.15
    profile: TargetProfile | None = None

    def __post_init__(self) -> None:
        if not 0 < self.latency_tolerance < math.inf:
            raise UsageError(
                f"`latency-tolerance` got {self.latency_tolerance}; use a share above 0"
            )

    @classmethod
    def of(cls, policy: Policy, options: Mapping[str, Any]) -> CheckRequest:
        """From the keyword arguments of `check`.

        Raises:
            UsageError: A name that there is none of, or a value outside its range.
        """
        given = known_names("check", options, CheckOptions.__annotations__)
        if "data" in given:
            given["data"] = str(given["data"])

        if "profile" in given and not isinstance(given["profile"], TargetProfile):
            given["profile"] = TargetProfile.read(given["profile"])

        def taken(*names: str) -> dict[str, Any]:
            return {n: given[n] for n in names if n in given}

        said = Policy(**taken("ssim", "budget", "weights", "data", "trust_stored"))
        return cls(
            policy=said.over(policy),
            sources=EvidenceSources(
                **taken("attack", "reattack", "new_data", "storage", "workers")
            ),
            **taken("model", "trust_model", "latency", "latency_tolerance", "profile"),
        )
