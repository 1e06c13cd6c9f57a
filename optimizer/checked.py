"""What a check says: properties of one split config, its verdict and exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from .find import SplitResult

What = Literal["holds", "regressed", "moved", "slower", "undecided", "skipped"]
HOLDS, UNDECIDED, REGRESSED, CHANGED = 0, 1, 4, 5


@dataclass(frozen=True)
class Property:
    """One thing that was checked: its name, what became of it, and why in one phrase."""

    name: str
    what: What
    detail: str


@dataclass
class CheckResult:
    """All properties of one split config against one model."""

    name: str
    model: str
    cut: str
    properties: list[Property] = field(default_factory=list)
    found: SplitResult | None = None

    def add(self, name: str, what: What, detail: str) -> None:
        """Note one property."""
        self.properties.append(Property(name, what, detail))

    @property
    def exit_code(self) -> int:
        """0 holds, 4 privacy regression, 1 undecided, 5 cut moved or latency regressed."""
        seen = {p.what for p in self.properties}
        if "regressed" in seen:
            return REGRESSED
        if "undecided" in seen or not seen:
            return UNDECIDED
        return CHANGED if seen & {"moved", "slower"} else HOLDS

    @property
    def verdict(self) -> str:
        """The result in one phrase."""
        return {
            HOLDS: "holds",
            UNDECIDED: "could not be decided (counts as failing)",
            REGRESSED: "PRIVACY REGRESSION",
            CHANGED: "protects, but the cut moved or latency regressed",
        }[self.exit_code]


def worst(codes: Sequence[int]) -> int:
    """The exit code of several checks: privacy first, then undecided, then changed."""
    return next((c for c in (REGRESSED, UNDECIDED, CHANGED) if c in codes), HOLDS)
