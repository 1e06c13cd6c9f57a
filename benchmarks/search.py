"""Attack-training cost of the suffix-aware search against the exhaustive sweep of the same panel.

    python benchmarks/search.py [--model NAME --weights FILE --data FOLDER ...] [--cuts paper|clean]

Both run in this process, over the same cuts, features, attackers and seeds, in memory, so that
neither can reuse the other's work. Prints seconds and image-steps of attack training, their ratios,
and whether both return the same cut.
"""

from __future__ import annotations

import sys

import optuna
from _shared import parser_of

from partopt.attackers.features import FeatureStore
from partopt.cache import cache_dir
from partopt.images.load import load_images
from partopt.models.load import load_model
from partopt.optimizer.attempt import Bench
from partopt.optimizer.budgets import budget_of
from partopt.optimizer.floor import floor_of
from partopt.optimizer.search import Course, Search
from partopt.profilers.profile import profile


def main() -> int:
    parser = parser_of(__doc__, "efficientnet_b0")
    parser.add_argument("--cuts", nargs="*", default=["paper", "clean"])
    parser.add_argument("--max-cuts", type=int, default=24)
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--ssim", type=float, default=0.2)
    args = parser.parse_args()
    model = load_model(args.model, weights=args.weights, mean=args.mean, std=args.std)
    graph, budget = model.trace(), budget_of(args.budget)
    images = load_images(args.data, model.preprocessing, budget.split)
    side = args.resolution or budget.resolution or model.preprocessing.input_size
    floor = floor_of(images, side, 0)
    print(f"{args.model}, weights {model.weights}, {images.source}, {side}x{side}, {args.budget}")
    print("| cuts | way | attacks | image-steps | seconds | answer |\n|---|---|---|---|---|---|")
    agree = True
    for kind in args.cuts:
        cuts = graph.cuts(kind, max_cuts=args.max_cuts)
        latencies = profile(graph, cuts).cuts
        rows = {}
        # The sweep goes first: it makes the features that both then read.
        for way in ("sweep", "search"):
            store = FeatureStore(
                cache_dir("features"), graph, model.preprocessing, images, model.weights_hash
            )
            bench = Bench(store=store, floors={side: floor})
            course = Course(threshold=args.ssim, exhaustive=way == "sweep")
            memory = optuna.storages.InMemoryStorage()
            search = Search(cuts, latencies, bench, budget.panel(), course, memory)
            for cut in cuts if way == "sweep" else []:
                for part in ("train", "mirrored"):
                    store.rows(cut, part, cuts)
            outcome = search.run()
            picked = search.answer()
            answer = "none" if picked is None else cuts[picked].name
            rows[way] = (outcome, answer)
            print(
                f"| {kind} ({len(cuts)}) | {way} | {outcome.run} | {outcome.image_steps} | "
                f"{outcome.seconds:.0f} | {answer} |",
                flush=True,
            )
        (a, one), (b, two) = rows["sweep"], rows["search"]
        agree = agree and one == two
        print(
            f"| {kind} ({len(cuts)}) | ratio | {a.run / b.run:.1f}x | "
            f"{a.image_steps / b.image_steps:.1f}x | {a.seconds / b.seconds:.1f}x | "
            f"{'same' if one == two else 'DIFFERENT'} |",
            flush=True,
        )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
