"""What an attack reaches by its data and its epochs: would more of them break the cut?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Unpack

from ..attackers.base import Attacker
from ..attackers.scoring import Score
from ..errors import AttackError, UsageError
from ..models.load import LoadedModel
from ..optimizer.attempt import Failed, Wish, attempt
from ..optimizer.prepare import prepare
from ..optimizer.protocols import PUBLISHED_THRESHOLD
from ..optimizer.requests import AttackOptions, FindRequest
from ..optimizer.watcher import Silent, Watcher

RISE = 0.01  # growth of the score over the last step that counts as still rising
FEWEST = 16


@dataclass(frozen=True)
class Cell:
    """One attacker with so much data and so many epochs; None: it trains without epochs."""

    attacker: str
    images: int
    epochs: int | None
    score: Score
    seconds: float


@dataclass(frozen=True)
class Strength:
    """All of them, and what is still rising."""

    model: str
    weights: str
    cut: str
    data: str
    resolution: int
    floor: float
    threshold: float
    cells: list[Cell]
    warnings: list[str] = field(default_factory=list)

    @property
    def rising(self) -> list[str]:
        """Where the last step, in data or in epochs, still raised the score by more than `RISE`."""
        found = []
        for attacker in dict.fromkeys(c.attacker for c in self.cells):
            mine = [c for c in self.cells if c.attacker == attacker]
            most, longest = max(c.images for c in mine), max(c.epochs or 0 for c in mine)
            by_data = [c for c in mine if (c.epochs or 0) == longest]
            by_time = [c for c in mine if c.images == most]
            for what, line, size in (
                ("images", by_data, [c.images for c in by_data]),
                ("epochs", by_time, [c.epochs or 0 for c in by_time]),
            ):
                if len(line) > 1 and line[-1].score.value - line[-2].score.value > RISE:
                    a, b = line[-2].score.value, line[-1].score.value
                    leak = " and would leak" if b < self.threshold <= 2 * b - a else ""
                    found.append(
                        f"{attacker} is still rising with {what}: {a:.2f} at {size[-2]}, {b:.2f} "
                        f"at {size[-1]}; as much again would be {2 * b - a:.2f}{leak}"
                    )
        return found


class StrengthOptions(AttackOptions, total=False):
    """What `strength` takes as keyword arguments besides its own; None is the default."""

    ssim: float | None


def strength(
    model: str | LoadedModel,
    cut: str,
    *,
    images: Sequence[int] | None = None,
    epochs: Sequence[int] | None = None,
    watcher: Watcher | None = None,
    **options: Unpack[StrengthOptions],
) -> Strength:
    """Attack one cut with growing numbers of training images and of epochs.

    Test images and validation images stay the same.

    Args:
        model, cut: Which one.
        images: Numbers of training images; None is 100 and its doublings up to all there are.
        epochs: For attackers that train in epochs; None is a third of the budget's, and all.
        watcher: Is told of progress.
        options: As for `find`; ``ssim`` is the threshold that a rise is held against.

    Raises:
        UsageError: A number that is too small or more than there are.
    """
    watcher = watcher or Silent()
    if epochs is not None and min(epochs, default=0) < 1:
        raise UsageError(f"`epochs` got {list(epochs)}; use 1 or more")
    request = FindRequest.of(model, options, "strength", StrengthOptions)
    request = replace(request, which_cuts=replace(request.which_cuts, cuts=[cut]))
    ssim = PUBLISHED_THRESHOLD if request.ssim is None else request.ssim
    ground = prepare(request, watcher)
    sizes = _sizes(images, ground.images.split.train)
    target, bench = ground.cuts[0], ground.bench
    cells = []
    for name, attacker in ground.panel.items():
        for tried in _lengths(attacker, epochs):
            for size in sizes:
                long = tried.settings().get("epochs")
                what = f"{name}, {size} images" + (f", {long} epochs" if long else "")
                watcher.stage(what, 1)
                wish = Wish(images=size, progress=partial(watcher.progress, what))
                try:
                    reached = attempt(bench, target, tried, wish)
                except Failed as failure:
                    raise AttackError(f"{what}: the attack failed: {failure}") from failure
                cells.append(Cell(name, size, long, reached.score, reached.own_seconds))
                score = reached.score
                watcher.attacked(target.name, what, score.value, score.low >= ssim)
    return Strength(
        model=ground.model.spec,
        weights=ground.model.weights,
        cut=target.name,
        data=ground.images.source,
        resolution=ground.side,
        floor=float(ground.floor.mean()),
        threshold=ssim,
        cells=cells,
        warnings=ground.warnings,
    )


def _sizes(wanted: Sequence[int] | None, all_of_them: int) -> list[int]:
    if wanted is None:
        sizes = [100 * 2**i for i in range(20) if 100 * 2**i < all_of_them]
        return [*sizes, all_of_them]
    sizes = sorted(set(wanted))
    if not sizes or sizes[0] < FEWEST or sizes[-1] > all_of_them:
        raise UsageError(
            f"`images` got {list(wanted)}; use {FEWEST} to {all_of_them}, the training images "
            "there are"
        )
    return sizes


def _lengths(attacker: Attacker, epochs: Sequence[int] | None) -> list[Attacker]:
    """The attacker with each number of epochs, or as it is."""
    own = attacker.settings().get("epochs")
    if own is None:
        return [attacker]
    wanted = sorted({max(1, own // 3), own} if epochs is None else set(epochs))
    return [replace(attacker, epochs=n) for n in wanted]  # type: ignore[type-var]
