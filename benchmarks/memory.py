"""Peak memory of attacks on large feature maps, each in a process of its own.

    python benchmarks/memory.py [--model vgg16] [--cuts features.1 ...] [--attackers linear ...]
        [--images 1000] [--image-steps 64] [--seconds 300] [--limit 6]

The attackers' own settings at the model's own resolution. The feature pass and the closed form run
in full. Training ends after --image-steps, by when every kind of step has been made, or after
--seconds; white-box attackers do two steps with one setting, the hybrid and the ensemble from a
decoder that was trained for --image-steps in the same process. The ensemble's peak is that of all
its members: all but the c-GAN. Exit code 1 where a peak is above --limit GiB.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from partopt.attackers.base import Attacker, Context
from partopt.attackers.decoder import Decoder
from partopt.attackers.features import FeatureStore
from partopt.attackers.hybrid import Hybrid
from partopt.attackers.pairs import Pairs
from partopt.attackers.panel import make
from partopt.attackers.rmle import Rmle
from partopt.cache import cache_dir
from partopt.images.load import Split, load_images
from partopt.models.load import load_model
from partopt.optimizer.pairs import give_head, pairs_at
from partopt.profilers.memory import keep_memory

GIB = 2**30
# The largest maps, one of each later resolution, and the last.
CUTS = ("features.1", "features.6", "features.15", "features.29")
ATTACKERS = ("linear", "decoder", "cgan", "rmle", "hybrid", "ensemble")


class Enough(Exception):
    """Training has gone on for long enough."""


def peak() -> float:
    """Largest resident set of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def short(name: str) -> Attacker:
    """An attacker whose settings matter for memory are its own, and whose descents are short."""
    few: dict[str, Any] = {"steps": 2, "tvs": (0.03,), "distances": ("l2",), "sizes": ("input",)}
    settings: dict[str, dict[str, Any]] = {
        "rmle": few,
        "hybrid": few,
        "ensemble": {**few, "hybrid": Hybrid(**few), "rmle": Rmle(**few)},
    }
    return make(name, settings.get(name))


def fit(attacker: Attacker, pairs: Pairs, context: Context, steps: float, seconds: float) -> bool:
    """Fit for so many image-steps and seconds; whether that was all there is to do."""
    end, most = time.monotonic() + seconds, context.image_steps + steps

    def look(*_: object) -> None:
        if context.image_steps >= most or time.monotonic() > end:
            raise Enough

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 1, 1)
    try:
        attacker.fit(pairs, context)
    except Enough:
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return True


def one(args: argparse.Namespace, cut: str, name: str) -> None:
    keep_memory()
    model = load_model(args.model, weights="none")
    graph = model.trace()
    target = graph.cut(cut)
    images = load_images(args.data, model.preprocessing, Split(args.images, 150, 250))
    store = FeatureStore(
        cache_dir("features"), graph, model.preprocessing, images, model.weights_hash
    )
    attacker = short(name)
    start = time.monotonic()
    pairs, unseen = pairs_at(target, attacker, store, images.images)
    context = Context()
    give_head(context, store, target, attacker)
    made, features = time.monotonic() - start, peak()
    steps: float = args.image_steps
    trained = True
    if attacker.needs_head:
        if name != "rmle":
            decoder = Decoder()
            key = repr(decoder)
            trained = fit(decoder, pairs, context, steps, args.seconds)
            context.keep(key, pairs, decoder, 0)
        steps = math.inf
    whole = fit(attacker, pairs, context, steps, args.seconds)
    if whole:
        attacker.reconstruct(unseen.features.take(range(16)))
    result = {
        "cut": cut,
        "shape": list(pairs.features.shape[1:]),
        "attacker": name,
        "features_s": made,
        "features_gib": features,
        "image_steps": context.image_steps,
        "whole": whole and trained,
        "gib": peak(),
    }
    print(json.dumps(result))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cuts", nargs="*", default=list(CUTS))
    parser.add_argument("--attackers", nargs="*", default=list(ATTACKERS))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--image-steps", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--limit", type=float, default=6.0)
    parser.add_argument("--one", nargs=2, metavar=("CUT", "ATTACKER"))
    args = parser.parse_args()
    if args.one:
        one(args, *args.one)
        return 0
    print(
        "| cut | map | attacker | after the feature pass | peak | trained on |\n" + "|---" * 6 + "|"
    )
    worst = 0.0
    for cut in args.cuts:
        for name in args.attackers:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--one", cut, name],
                stdout=subprocess.PIPE,
                check=True,
            )
            r = json.loads(done.stdout.splitlines()[-1])
            worst = max(worst, r["gib"])
            shape = "x".join(map(str, r["shape"]))
            end = "all" if r["whole"] else f"{r['image_steps']} image-steps"
            print(
                f"| `{cut}` | {shape} | {name} | {r['features_gib']:.1f} GiB | "
                f"{r['gib']:.1f} GiB | {end} |",
                flush=True,
            )
    print(f"largest peak {worst:.2f} GiB, limit {args.limit:g}")
    return 0 if worst <= args.limit else 1


if __name__ == "__main__":
    sys.exit(main())
