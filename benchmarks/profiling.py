"""Cost and error of the profile: one instrumented pass for all cuts, against real split runs.

    python benchmarks/profiling.py [--models NAME ...] [--threads N]

For each model, interleaved on one machine: the instrumented pass against a plain forward pass, and
for every cut the predicted total against head, hand-off and tail run for real.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import torch

from partopt.models.load import load_model
from partopt.profilers.base import Conditions
from partopt.profilers.instrumented import HostPass, Subject
from partopt.profilers.profile import one_setting, profile, verify


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="*", default=["mobilenet_v2", "resnet18", "efficientnet_b0"]
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-cuts", type=int, default=24)
    args = parser.parse_args()
    print("| model | cuts | instrumented / plain pass | median error | worst error |")
    print("|---|---|---|---|---|")
    for name in args.models:
        model = load_model(name, weights="none")
        graph = model.trace()
        cuts = graph.cuts("clean", max_cuts=args.max_cuts)
        x = model.example()
        plain, marked = [], []
        with one_setting(args.threads), torch.inference_mode():
            instrumented = HostPass(Subject.of(graph, cuts, x))
            for i in range(25):
                start = time.perf_counter()
                graph.module(x)
                middle = time.perf_counter()
                instrumented.once()
                if i >= 5:
                    plain.append(middle - start)
                    marked.append(time.perf_counter() - middle)
        p = profile(graph, cuts, Conditions(threads=args.threads))
        errors = [
            abs(verify(graph, c, latency, Conditions(threads=args.threads, repetitions=15)).error)
            for c, latency in zip(cuts, p.cuts, strict=True)
        ]
        print(
            f"| {name} | {len(cuts)} | {np.median(marked) / np.median(plain):.2f} | "
            f"{np.median(errors):.1%} | {max(errors):.1%} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
