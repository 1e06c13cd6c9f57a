"""Attack one cut once: what every search, study and benchmark does with an attacker.

A failure is an exception, never a low score. `attempt` is one try; `attempt_twice` makes a second
one, with settings less likely to fail.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from ..attackers.base import Attacker, Context, Fitted, Key, Reconstruct, remark
from ..attackers.features import FeatureStore
from ..attackers.pairs import Pairs
from ..attackers.retrieval import Identified, Lineup
from ..attackers.scales import Look, PerSide, ScaledScore, score_at, ssim_at
from ..attackers.scoring import Score, corrected, ssim_of
from ..errors import PartoptError, StorageError, first_line
from ..graph.build import Cut
from ..hashing import derive_seed
from ..images.load import at_resolution
from .pairs import Unseen, give_head, pairs_at

FAILURES = (PartoptError, RuntimeError, MemoryError, ValueError)  # what an attack may fail with


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all attacks of a run have in common.

    Attributes:
        store: The features.
        floors: SSIM of the blind attacker per test image, by side at which pictures are compared.
        scale: ``corrected`` or ``raw``.
        seed: For everything random.
        device: Where attackers train.
    """

    store: FeatureStore
    floors: Mapping[int, np.ndarray]
    scale: str = "corrected"
    seed: int = 0
    device: str = "cpu"

    @property
    def sides(self) -> tuple[int, ...]:
        """At which pictures are compared, in pixels, largest first."""
        return tuple(sorted(self.floors, reverse=True))

    @property
    def resolution(self) -> int:
        """Side at which images are rebuilt, in pixels."""
        return self.sides[0]

    @property
    def floor(self) -> np.ndarray:
        """The floor at that side."""
        return self.floors[self.resolution]

    @cached_property
    def pictures(self) -> np.ndarray:
        """All images at that side, uint8."""
        return at_resolution(self.store.images.images, self.resolution)

    def seed_at(self, cut: Cut) -> int:
        """The seed of every attacker at a cut.

        They have one: a member that is taken as fitted is what fitting it again would give.
        """
        return derive_seed(self.seed, cut.name)

    def score(self, per_side: PerSide) -> ScaledScore:
        """The score at every side of SSIM per test image, on the run's scale."""
        seed = derive_seed(self.seed, "bootstrap")
        return score_at(per_side, self.floors, scale=self.scale, seed=seed)

    def measure(
        self, reconstruct: Reconstruct, unseen: Unseen, look: Look | None = None
    ) -> dict[int, np.ndarray]:
        """SSIM per test image at every side; `look` as in `scales.ssim_at`."""
        return ssim_at(reconstruct, unseen.features, unseen.images, self.sides, look=look)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How one attack is to go.

    Attributes:
        also: Cuts whose features the same pass should make.
        images: So many training images; None is all.
        leaks_from: Training may stop once the lower end of the score is proven to be at or above
            this; None never stops early.
        fitted: Attackers fitted already at this cut; this one joins them, unless it is private.
        private: Its settings are in nobody else's.
        pictures: Keep the rebuilt test images, for other measures: rebuilding them anew takes a
            white-box attacker as long again.
        progress: Called with the share of the work done; may raise to end the attack.
    """

    also: Sequence[Cut] = ()
    images: int | None = None
    leaks_from: float | None = None
    fitted: dict[Key, Fitted] = field(default_factory=dict)
    private: bool = False
    pictures: bool = False
    progress: Callable[[float], None] = lambda share: None


@dataclass(frozen=True, kw_only=True)
class Reached:
    """An attack that ran.

    Attributes:
        attacker: Fitted.
        settings: Its `repr` before it was fitted.
        per_side: SSIM per test image by side, rounded as it is stored.
        scores: On the run's scale, by side.
        retrieved: In how many test images the true photo is the one that is picked out.
        complete: False where it stopped because the leak was proven.
        note: What a result must say of it.
        unplaced: Why pairs settle nothing at this cut, as in `FeatureStore`.
        pairs: What it learned from.
        unseen: What it was scored on.
        rebuilt: All test images as rebuilt, (N, 3, R, R) in [0, 1]; empty unless they were asked
            for.
        own_steps, own_seconds: Spent in this try.
        image_steps, seconds: The same with what was taken as fitted counted as if fitted here.
    """

    attacker: Attacker
    settings: str
    per_side: dict[int, np.ndarray]
    scores: ScaledScore
    retrieved: Identified
    complete: bool
    note: str
    unplaced: str
    pairs: Pairs
    unseen: Unseen
    rebuilt: torch.Tensor
    own_steps: int
    own_seconds: float
    image_steps: int
    seconds: float

    @property
    def rising(self) -> bool:
        """Whether it was still getting better when its budget ended."""
        return bool(getattr(self.attacker, "still_rising", False))

    @property
    def score(self) -> Score:
        """The strict one: the largest over all sides."""
        return self.scores.strict

    def held_out(self) -> float:
        """Mean SSIM on the validation images."""
        pairs = self.pairs
        values = ssim_of(self.attacker.reconstruct, pairs.held_out, pairs.held_out_images)
        return float(values.mean())


class Failed(Exception):
    """An attack failed; says why in one line, and what it cost."""

    def __init__(self, error: BaseException, settings: str, image_steps: int, seconds: float):
        super().__init__(first_line(error))
        self.settings = settings
        self.image_steps = image_steps
        self.seconds = seconds


def attempt(bench: Bench, cut: Cut, attacker: Attacker, wish: Wish | None = None) -> Reached:
    """Fit a copy of `attacker` on training and validation images; score it on the test images.

    Raises:
        Failed: The attack failed.
        StorageError: The disk or the storage did; the attack says nothing.
    """
    wish = wish or Wish()
    attacker, settings = copy.deepcopy(attacker), repr(attacker)
    start = time.monotonic()
    context = Context(seed=bench.seed_at(cut), device=bench.device, fitted=wish.fitted)
    try:
        pairs, unseen = pairs_at(
            cut, attacker, bench.store, bench.pictures, wish.also, most=wish.images
        )
        context.proven, context.progress = _proof(bench, unseen, wish), wish.progress
        give_head(context, bench.store, cut, attacker)
        wish.progress(0.0)
        fitting = time.monotonic()
        attacker.fit(pairs, context)
        if not context.stopped_early and not wish.private:
            context.keep(settings, pairs, attacker, time.monotonic() - fitting)
        lineup = Lineup(unseen.images)
        kept: list[torch.Tensor] = []

        def look(index: range, rebuilt: torch.Tensor) -> None:
            lineup.add(index, rebuilt)
            if wish.pictures:
                kept.append(rebuilt)

        measured = bench.measure(attacker.reconstruct, unseen, look)
        per_side = {side: values.round(6) for side, values in measured.items()}
        found = bench.score(per_side)  # what is stored is what is judged
        retrieved = lineup.result()
    except StorageError:
        raise
    except FAILURES as error:
        spent = time.monotonic() - start
        raise Failed(error, settings, context.image_steps, spent) from error
    own = time.monotonic() - start
    steps, seconds = context.cost(own)
    return Reached(
        attacker=attacker,
        settings=settings,
        per_side=per_side,
        scores=found,
        retrieved=retrieved,
        complete=not context.stopped_early,
        note=remark(attacker),
        unplaced=bench.store.unplaced(cut),
        pairs=pairs,
        unseen=unseen,
        rebuilt=torch.cat(kept) if kept else torch.empty(0),
        own_steps=context.image_steps,
        own_seconds=own,
        image_steps=steps,
        seconds=seconds,
    )


def attempt_until_settled(
    bench: Bench, cut: Cut, attacker: Attacker, wish: Wish, ceiling: int, threshold: float
) -> Reached:
    """`attempt`, and again with twice the epochs while it is still rising below the threshold.

    The strongest counts; where that one was still rising, it is not settled.

    Args:
        bench, cut, attacker, wish: As for `attempt`.
        ceiling: At most so many times the attacker's own epochs.
        threshold: Where the upper end of the score reaches it there is nothing left to find out.

    Raises:
        Failed, StorageError: As for `attempt`.
    """
    reached = strongest = attempt(bench, cut, attacker, wish)
    times, steps, seconds = 1, 0, 0.0
    while reached.rising and reached.score.high < threshold and 2 * times <= ceiling:
        longer = attacker.longer(2 * times)
        if longer is None:
            break
        times *= 2
        steps, seconds = steps + reached.own_steps, seconds + reached.own_seconds
        reached = attempt(bench, cut, longer, replace(wish, private=True))
        # More training may score lower by chance: what was reached was reached.
        strongest = max(reached, strongest, key=lambda r: r.score.high)
    return replace(
        strongest,
        own_steps=reached.own_steps + steps,
        own_seconds=reached.own_seconds + seconds,
        image_steps=reached.image_steps + steps,
        seconds=reached.seconds + seconds,
    )


def attempt_twice(
    bench: Bench, cut: Cut, attacker: Attacker, wish: Wish | None = None
) -> tuple[Reached | Failed, list[str]]:
    """`attempt`, and once more with safer settings after a failure.

    Returns:
        What came of it, and why earlier tries failed.
    """
    try:
        return attempt(bench, cut, attacker, wish), []
    except Failed as first:
        safer = attacker.safer()
        if safer is None:
            return first, [f"failed: {first}"]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            return attempt(bench, cut, safer, wish), [f"failed: {first}"]
        except Failed as second:
            return second, [f"failed: {first}", f"failed: {second}"]


def _proof(bench: Bench, unseen: Unseen, wish: Wish) -> Callable[[Reconstruct, float], bool]:
    def proven(reconstruct: Reconstruct, validation: float) -> bool:
        if wish.leaks_from is None:
            return False
        hint = validation
        if bench.scale == "corrected":
            hint = float(corrected(validation, bench.floor.mean()))
        if hint < wish.leaks_from:
            return False
        found = bench.score(bench.measure(reconstruct, unseen))
        return found.strict.low >= wish.leaks_from

    return proven
