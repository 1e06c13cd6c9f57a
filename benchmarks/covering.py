"""A cut that stands for later ones, against attacking every cut: the answers and what they cost.

    python benchmarks/covering.py --model mobilenet_v2 --weights FILE --mean 0.5 --std 0.5
        --data FOLDER [--cuts stage] [--thresholds 0.1 0.2 ...] [--out covering.json]

Every cut is attacked with the whole panel once. Then, for each threshold, three searches meet the
same results wherever they attack: all cuts, backwards until one does not pass, and by halves with a
small decoder on the cuts that are stood for. The earlier a cut, the faster it counts. The answer of
the last must pass with the results of all cuts; it may be a later one. Image-steps are of the
attacks that each made, as if run to the end. Also printed: by how much the largest score after a
cut is above that cut's own, where it is. Ends with 1 where an answer by halves does not pass.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from _shared import parser_of
from optuna.storages import InMemoryStorage

from partopt.attackers.base import Attacker
from partopt.attackers.decoder import Decoder
from partopt.attackers.features import FeatureStore
from partopt.attackers.sketch import Sketch
from partopt.cache import cache_dir
from partopt.graph.build import Cut
from partopt.images.load import load_images
from partopt.models.load import load_model
from partopt.optimizer.attempt import Bench, Reached
from partopt.optimizer.budgets import BUDGETS
from partopt.optimizer.floor import floor_of
from partopt.optimizer.plan import Job
from partopt.optimizer.rule import Grant
from partopt.optimizer.search import Course, Search
from partopt.optimizer.settle import Marked, Settling, settle
from partopt.optimizer.sweep import Sweepers
from partopt.optimizer.watcher import Silent
from partopt.profilers.base import CutLatency, Duration, Profile

# A decoder of so few epochs is always still rising, which under a certifying run is a verdict.
GRANT = Grant("screened", "few epochs")
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
PANEL = ("linear", "newton", "decoder")
SMALL: dict[str, Any] = {"epochs": 2, "width": 32, "blocks": 1, "narrowest": 16, "batch": 8}


@dataclass(frozen=True)
class Ground:
    """What all searches share."""

    bench: Bench
    cuts: Sequence[Cut]
    timing: Profile

    def search(self, course: Course, cuts: Sequence[Cut] | None = None) -> Search:
        """A search over the cuts, with a storage of its own."""
        panel = BUDGETS["quick"].panel(list(PANEL))
        memory = InMemoryStorage()
        return Search(cuts or self.cuts, self.timing.cuts, self.bench, panel, course, memory)


def remember() -> None:
    """Make every attack once, and to its end, whichever search or sweep makes it."""
    attack, known = Search.attack, dict[str, Reached]()

    def remembered(
        search: Search, job: Job, attacker: Attacker, *, to_the_end: bool = False
    ) -> Reached:
        key = search.key(search.cuts[job[0]], attacker, job[1])
        if key not in known:
            known[key] = attack(search, job, attacker, to_the_end=True)
        return known[key]

    Search.attack = remembered  # type: ignore[method-assign]


def times(cuts: Sequence[Cut]) -> Profile:
    """An earlier cut is faster, without noise."""

    def of(ms: float) -> Duration:
        return Duration(ms=ms, noise_ms=0.0, basis="modelled", backend="made up")

    made = [
        CutLatency(enclave=of(c.node), handoff=of(0), accelerator=of(0), total=of(c.node + 1))
        for c in cuts
    ]
    return Profile(
        cuts=made,
        full_enclave=of(1e6),
        full_accelerator=of(0),
        threads=1,
        batch=1,
        repetitions=1,
    )


def halved(ground: Ground, threshold: float) -> tuple[str, int, int]:
    """Answer, attacks in full beyond cheap ones, and image-steps, sweep included."""
    course = Course(threshold=threshold, covers=True, grant=GRANT)

    def make(cuts: list[Cut], timing: Profile, marked: Marked) -> Search:
        marks = replace(course, promoted=marked.promoted, counted=marked.counted)
        return ground.search(marks, cuts)

    small = Decoder(**SMALL, patience=0, crops=0)
    settling = Settling(
        every=ground.cuts,
        sweepers=Sweepers(sketch=Sketch(**BUDGETS["quick"].sweep), decoder=small),
        grant=GRANT,
        covers=True,
    )
    found = settle(ground.cuts, ground.timing, make, lambda cuts: ground.timing, settling, Silent())
    full = sum(name == "decoder" for _, name in found.outcome.attacks)
    name = "none" if found.chosen is None else found.cuts[found.chosen].name
    return name, full, found.outcome.image_steps


def plain(ground: Ground, threshold: float, exhaustive: bool) -> tuple[str, int, int, Search]:
    """The same of a search without a sweep."""
    search = ground.search(Course(threshold=threshold, exhaustive=exhaustive, grant=GRANT))
    found = search.run()
    answer = search.answer()
    full = sum(name == "decoder" for _, name in found.attacks)
    name = "none" if answer is None else ground.cuts[answer].name
    return name, full, found.image_steps, search


def falls(search: Search) -> float:
    """The most by which a later cut's score is above a cut's own."""
    scores = [v.value or 0.0 for v in search.verdicts()]
    later = [max(scores[i + 1 :], default=0.0) - s for i, s in enumerate(scores)]
    return max(0.0, *later)


def main() -> int:
    parser = parser_of(__doc__, "mobilenet_v2")
    parser.add_argument("--cuts", default="stage")
    parser.add_argument("--thresholds", type=float, nargs="+", default=list(THRESHOLDS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON, one entry a model; others in it stay")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    model = load_model(args.model, weights=args.weights, mean=args.mean, std=args.std)
    graph, budget = model.trace(), BUDGETS["quick"]
    images = load_images(args.data, model.preprocessing, budget.split)
    side = budget.resolution or model.preprocessing.input_size
    store = FeatureStore(
        cache_dir("features"), graph, model.preprocessing, images, model.weights_hash
    )
    cuts = graph.cuts(args.cuts)
    bench = Bench(store=store, floors={side: floor_of(images, side, 0)})
    ground = Ground(bench, cuts, times(cuts))
    remember()
    everything = plain(ground, 2.0, True)[3]
    above = falls(everything)
    scores = {c.name: v.value for c, v in zip(cuts, everything.verdicts(), strict=True)}
    print(f"{args.model}, {images.source}, {side}x{side}, {len(cuts)} cuts")
    print(f"a later cut's score is at most {above:.3f} above an earlier one's\n")
    print("| threshold | all cuts | backwards | by halves | image-steps | passes |")
    print("|---|---|---|---|---|---|")
    rows, wrong = [], 0
    for threshold in args.thresholds:
        one, _, all_steps, search = plain(ground, threshold, True)
        two, full_back, back, _ = plain(ground, threshold, False)
        three, full, steps = halved(ground, threshold)
        passed = {c.name for c, v in zip(cuts, search.verdicts(), strict=True) if v.safe}
        passes = three == "none" or three in passed
        wrong += not passes
        rows.append(
            {
                "threshold": threshold,
                "all": one,
                "backwards": two,
                "halves": three,
                "full": {"all": len(cuts), "backwards": full_back, "halves": full},
                "image_steps": {"all": all_steps, "backwards": back, "halves": steps},
                "passes": passes,
            }
        )
        print(
            f"| {threshold:g} | {one} | {two} ({full_back} in full) | {three} ({full} in full) | "
            f"{all_steps} / {back} / {steps}: {all_steps / max(1, steps):.1f}x | "
            f"{'yes' if passes else '**no**'} |",
            flush=True,
        )
    if args.out is not None:
        known = json.loads(args.out.read_text()) if args.out.is_file() else {}
        known[args.model] = {"above": above, "scores": scores, "rows": rows}
        args.out.write_text(json.dumps(known, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
