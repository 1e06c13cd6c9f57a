"""Who is told of a run's progress."""

from __future__ import annotations

from typing import Protocol


class Watcher(Protocol):
    """Whoever shows progress."""

    def stage(self, text: str, jobs: int | None = None) -> None:
        """A new stage of the run begins; it has at most `jobs` attacks, where it has any."""

    def progress(self, what: str, share: float) -> None:
        """Part of the current stage is done; `share` in [0, 1]."""

    def attacked(self, cut: str, attacker: str, score: float | None, leaks: bool) -> None:
        """An attack ended."""


class Silent:
    """Shows nothing."""

    def stage(self, text: str, jobs: int | None = None) -> None:
        """Nothing."""

    def progress(self, what: str, share: float) -> None:
        """Nothing."""

    def attacked(self, cut: str, attacker: str, score: float | None, leaks: bool) -> None:
        """Nothing."""
