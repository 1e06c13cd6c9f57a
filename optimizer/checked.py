"""What is checked, and what a check says: properties of a split config, verdict, exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..config import ChosenLatency, CutInfo, SplitConfig, Status
from ..errors import ConfigError
from ..graph.build import Cut, LayerGraph
from ..models.load import LoadedModel
from ..profilers.target import TargetProfile
from .find import SplitResult
from .policy import Policy, Terms

What = Literal["holds", "regressed", "moved", "slower", "undecided", "skipped"]
HOLDS, UNDECIDED, REGRESSED, CHANGED = 0, 1, 4, 5


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """A split config that holds a cut, and what it says of that cut."""

    config: SplitConfig
    cut: CutInfo
    latency: ChosenLatency

    @classmethod
    def read(cls, path: str | Path) -> Deployed:
        """Read a split config.

        Raises:
            ConfigError: It cannot be read, or holds no cut.
        """
        config = SplitConfig.read(path)
        if config.cut is None or config.latency_ms is None:
            raise ConfigError(f"split config {str(path)!r} holds no cut: no safe one was found")
        return cls(config=config, cut=config.cut, latency=config.latency_ms)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A split config under test, the model that it is held against, and the terms.

    Attributes:
        config, latency: The split config, and what it says of the deployed cut's latency.
        policy, terms: What has to hold, as it was said and with nothing left open.
        model, graph: Loaded by the policy, and traced.
        cut: The cut under test, of `graph`.
        cuts: All cuts that must be judged, `cut` among them.
        same: Whether graph and weights are those that the config names.
        profile: Where times come from, of this very graph; None takes them here.
    """

    config: SplitConfig
    latency: ChosenLatency
    policy: Policy
    terms: Terms
    model: LoadedModel
    graph: LayerGraph
    cut: Cut
    cuts: list[Cut]
    same: bool
    profile: TargetProfile | None = None

    def position(self, cuts: Sequence[Cut]) -> int:
        """Where in `cuts` the cut under test stands."""
        return next(i for i, cut in enumerate(cuts) if cut.node == self.cut.node)


@dataclass(frozen=True)
class Property:
    """One thing that was checked: its name, what became of it, and why in one phrase."""

    name: str
    what: What
    detail: str


@dataclass
class CheckResult:
    """All properties of one split config against one model; a check adds them one by one.

    Attributes:
        name, model, cut: Of the split config, and what it deploys.
        properties: What was checked.
        found: The run that gave the evidence, if one was needed.
        status: What a cut that holds is by this check's evidence, ``safe`` or ``screened``; None
            where it does not hold.
    """

    name: str
    model: str
    cut: str
    properties: list[Property] = field(default_factory=list)
    found: SplitResult | None = None
    status: Status | None = None

    def add(self, name: str, what: What, detail: str) -> None:
        """Note one property."""
        self.properties.append(Property(name, what, detail))

    @property
    def caveat(self) -> str:
        """``screened, not certified: `` where the cut only passes a screening, else nothing."""
        return "" if self.status in (None, "safe") else f"{self.status}, not certified: "

    @property
    def exit_code(self) -> int:
        """0 holds, 4 privacy regression, 1 undecided, 5 cut moved or latency regressed.

        A cut that was only screened holds like another: words tell them apart, codes do not.
        """
        seen = {p.what for p in self.properties}
        if "regressed" in seen:
            return REGRESSED
        if "undecided" in seen or not seen:
            return UNDECIDED
        return CHANGED if seen & {"moved", "slower"} else HOLDS

    @property
    def verdict(self) -> str:
        """The result in one phrase."""
        screened = self.status not in (None, "safe")
        return {
            HOLDS: f"holds, {self.status}, not certified" if screened else "holds",
            UNDECIDED: "could not be decided (counts as failing)",
            REGRESSED: "PRIVACY REGRESSION",
            CHANGED: (
                f"{f'{self.status}, not certified' if screened else 'protects'}, "
                "but the cut moved or latency regressed"
            ),
        }[self.exit_code]


def worst(codes: Sequence[int]) -> int:
    """The exit code of several checks: privacy first, then undecided, then changed."""
    return next((c for c in (REGRESSED, UNDECIDED, CHANGED) if c in codes), HOLDS)
