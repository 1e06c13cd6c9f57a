"""Before an answer stands: trained again with other seeds, and with fewer images.

One training says neither what the next seed would have reached nor what more images would. So at
the cut that is returned, and at the one after it with the highest score, the strongest attacker
that is trained in epochs is trained anew: with a quarter and a half of the images, and with two
other seeds, after which the interval of every trained attacker covers seeds too. With fewer images
it goes over them more often: the same steps, so that a curve over images says nothing of training
length. What the curve bounds with as many images as the adversary has must stay below the
threshold, else the cut is undecided; where it would not even if all trainings ended alike, other
seeds are not asked. The cut before the answer has other seeds too, unless it was proven to leak.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..attackers.base import Attacker
from ..config import Curve, CurvePoint
from ..graph.build import Cut
from ..hashing import derive_seed
from .keys import on_images
from .learning import Extrapolation, Rung, Terms, extrapolate
from .limits import Doubt
from .plan import Job
from .search import Search
from .seeds import FEWEST, Pooled, pooled
from .terms import AttackTerms

PARTS = (4, 2)  # of how many images one is taken, for the curve below all of them
Tell = Callable[[str, int], None]


@dataclass(frozen=True)
class Repeat:
    """One more training: on so many images (None is all), with which seed."""

    attacker: Attacker
    images: int | None
    seed: int


class _Repeating(Search):
    """Trainings of one attacker at one cut: stored and resumed, and never evidence by themselves.

    The one that the search has made already is taken from the storage, by its key.
    """

    purpose = "confirm"
    certifies = False
    keeps_pictures = False  # they are the search's own, a little better or worse

    def __init__(self, search: Search, cut: Cut, repeats: dict[str, Repeat]) -> None:
        self.repeats = repeats
        panel = {name: r.attacker for name, r in repeats.items()}
        course, storage = search.course.aside(), search.storage
        listener, crew = search.listener, search.crew
        super().__init__([cut], [], search.bench, panel, course, storage, listener, crew)

    def key(self, cut: Cut, attacker: Attacker, name: str = "") -> str:
        """Of the training called `name`."""
        repeat = self.repeats[name]
        return on_images(self.key_with(cut, attacker, repeat.seed), repeat.images)

    def terms(self, job: Job, *, to_the_end: bool = False) -> AttackTerms:
        """As the job says; never stopped by a proof."""
        repeat = self.repeats[job[1]]
        return AttackTerms(
            seed=repeat.seed,
            images=repeat.images,
            private=True,
            threshold=self.course.threshold,
        )


def confirm(
    search: Search,
    adversary: int | None,
    workers: int = 1,
    tell: Tell = lambda text, jobs: None,
) -> list[Search]:
    """Confirm the answer of a search, and the next one where it does not hold, until one does.

    Changes the search's evidence: intervals of trained attackers become wider, curves and doubts
    are added to its outcome.

    Args:
        search: A search that has run.
        adversary: Images that the adversary has; None is ten times the run's.
        workers: Trainings at a time.
        tell: Called with what is being done and how many trainings that takes.

    Returns:
        The searches that ran, for what they cost.
    """
    ran: list[Search] = []
    done: set[int] = set()
    while wanted := [i for i in _to_confirm(search) if i not in done]:
        for i in wanted:
            done.add(i)
            ran += _confirm_one(search, i, adversary, workers, tell)
    before = _before(search)
    if before is not None and before not in done and search.verdicts()[before].status != "leaks":
        ran += _confirm_one(search, before, None, workers, tell, curve=False)
    return ran


def _before(search: Search) -> int | None:
    """The last cut before the answer at which anything was trained."""
    answer = search.answer()
    trained = {
        i
        for (i, name), attack in search.outcome.attacks.items()
        if attack.score is not None and search.panel[name].longer(2) is not None
    }
    return max((i for i in trained if answer is not None and i < answer), default=None)


def _to_confirm(search: Search) -> list[int]:
    """The answer, a cut whose verdict was asked for, and the highest score after them."""
    verdicts, answer, asked = search.verdicts(), search.answer(), search.plan.first
    if asked is not None and verdicts[asked[0]].safe:
        first = asked[0] if answer is None else min(answer, asked[0])
        wanted = {asked[0], answer}
    else:
        first, wanted = (len(verdicts) if answer is None else answer), {answer}
    later = [i for i in range(first, len(verdicts)) if verdicts[i].complete]
    if later:
        wanted.add(max(later, key=lambda i: verdicts[i].high or 0.0))
    return sorted(i for i in wanted if i is not None)


def _confirm_one(
    search: Search,
    index: int,
    adversary: int | None,
    workers: int,
    tell: Tell,
    curve: bool = True,
) -> list[Search]:
    found = {n: search.outcome.attacks.get((index, n)) for n in search.panel}
    here = {n: a for n, a in found.items() if a is not None and a.high is not None}
    if not here:
        return []  # the rule says that nothing is known there
    trained = [n for n in here if search.panel[n].longer(2) is not None]
    name = max(trained or here, key=lambda n: here[n].high or 0.0)
    if name == "stack" and "decoder" in trained:
        name = "decoder"  # what it is made of; the lead that averaging has is added
    ran: list[Search] = []
    parts: Trained = {}
    if curve:
        curved = _trained_again(search, index, _parts(search, name), workers, tell, ran)
        if curved is None:
            return ran
        parts = curved
        _curve(search, index, name, parts, adversary)
        if index in search.outcome.doubts:
            return ran
    seeds = _trained_again(search, index, _others(search, name), workers, tell, ran)
    if seeds is None:
        return ran
    _seeds(search, index, name, seeds)
    if curve:
        _curve(search, index, name, {**parts, **seeds}, adversary)
    return ran


Trained = dict[str, tuple[Repeat, dict[int, np.ndarray]]]  # with SSIM per test image by side


def _trained_again(
    search: Search,
    index: int,
    repeats: dict[str, Repeat],
    workers: int,
    tell: Tell,
    ran: list[Search],
) -> Trained | None:
    """Run trainings at a cut; None, and a doubt, where one of them failed."""
    cut, name = search.cuts[index], next(iter(repeats.values())).attacker.name
    repeating = _Repeating(search, cut, repeats)
    tell(f"training {name} again at {cut.name}: {_what(repeats)}", len(repeats))
    repeating.run(workers)
    ran.append(repeating)
    stored = repeating.outcome.stored
    missing = [n for n in repeats if (0, n) not in stored]
    if missing:
        failed = repeating.outcome.attacks.get((0, missing[0]))
        why = f"failed: {failed.note}" if failed else "is missing"
        search.outcome.doubts[index] = Doubt(f"the training of {missing[0]} {why}")
        return None
    return {n: (repeat, stored[0, n].per_side) for n, repeat in repeats.items()}


def _what(repeats: dict[str, Repeat]) -> str:
    return "fewer images" if any(r.images for r in repeats.values()) else "other seeds"


def _others(search: Search, name: str) -> dict[str, Repeat]:
    """Trainings on all images by label: with the run's own seed, and with others."""
    attacker, own = search.panel[name], search.bench.seed
    seeds = [own, *(derive_seed(own, "again", i) for i in range(1, FEWEST))]
    return {f"{name}, seed {i}": Repeat(attacker, None, seed) for i, seed in enumerate(seeds)}


def _parts(search: Search, name: str) -> dict[str, Repeat]:
    """Trainings with the run's own seed by label: on all images, and on parts of them."""
    attacker, bench = search.panel[name], search.bench
    found = {f"{name}, seed 0": Repeat(attacker, None, bench.seed)}
    count = bench.store.images.split.train
    for part in PARTS:
        longer = attacker.longer(part) or attacker
        images = max(1, count // part)
        found[f"{name}, {images} images"] = Repeat(longer, images, bench.seed)
    return found


def _per_image(trained: Trained, side: int, images: int | None) -> list[np.ndarray]:
    """SSIM of the trainings on so many images, at one side."""
    return [per_side[side] for repeat, per_side in trained.values() if repeat.images == images]


def _seeds(search: Search, index: int, name: str, trained: Trained) -> None:
    """Widen the intervals of all trained attackers at a cut by what seeds differ in."""
    bench, seed = search.bench, derive_seed(search.bench.seed, "bootstrap")
    by_side: list[Pooled] = [
        pooled(_per_image(trained, side, None), floor, scale=bench.scale, seed=seed)
        for side, floor in bench.floors.items()
    ]
    strongest = max(by_side, key=lambda p: p.score.high)
    margin = max(p.another - float(np.mean(p.values)) for p in by_side)
    for (i, other), attack in list(search.outcome.attacks.items()):
        if i != index or attack.score is None or attack.high is None or attack.low is None:
            continue
        if other == name:
            changed = attack.model_copy(
                update={
                    "score": max(attack.score, *(p.score.value for p in by_side)),
                    "low": max(attack.low, *(p.score.low for p in by_side)),
                    "high": max(attack.high, *(p.score.high for p in by_side)),
                    "trainings": [round(v, 6) for v in strongest.values],
                }
            )
        elif search.panel[other].longer(2) is not None:
            changed = attack.model_copy(update={"high": max(attack.high, attack.score + margin)})
        else:
            continue
        search.record((i, other), changed)


def _curve(search: Search, index: int, name: str, trained: Trained, adversary: int | None) -> None:
    """What the curve over images bounds, at the side where that is most.

    Where there was one seed alone, as if all trainings ended alike.
    """
    bench, attacks = search.bench, search.outcome.attacks
    scores = [a.score for (i, _), a in attacks.items() if i == index and a.score is not None]
    own = attacks[index, name].score or 0.0
    terms = Terms(
        threshold=search.course.threshold,
        adversary=adversary,
        scale=bench.scale,
        seed=derive_seed(bench.seed, "curve"),
        lead=max(scores) - own,
        spread=None if len(_per_image(trained, bench.resolution, None)) > 1 else 0.0,
    )
    sizes = {repeat.images for repeat, _ in trained.values()}
    count = bench.store.images.split.train
    found: dict[int, Extrapolation] = {}
    for side, floor in bench.floors.items():
        rungs = [
            Rung(count if n is None else n, np.stack(_per_image(trained, side, n))) for n in sizes
        ]
        found[side] = extrapolate(rungs, floor, terms)
    side, worst = max(found.items(), key=lambda pair: pair[1].high)
    search.outcome.curves[index] = _shown(name, side, worst)
    if not worst.below:
        search.outcome.doubts[index] = Doubt(worst.reason)


def _shown(name: str, side: int, found: Extrapolation) -> Curve:
    return Curve(
        attacker=name,
        side=side,
        images=found.images,
        value=found.value,
        high=found.high,
        settles=found.settles,
        accelerating=found.accelerating,
        points=[
            CurvePoint(images=p.images, value=p.value, low=p.low, high=p.high) for p in found.points
        ],
    )


def curve_doubt(curve: Curve | None, threshold: float) -> Doubt | None:
    """What a stored curve says against a cut; None where its bound is below the threshold."""
    if curve is None:
        return Doubt("nobody measured what attacks would reach with more images")
    if curve.high < threshold:
        return None
    return Doubt(
        f"{curve.attacker} may reach {curve.high:.2f} with {curve.images} images, which is not "
        f"below {threshold:g}"
    )
