"""Split every torchvision classification model at every cut and compare with the whole model.

    python benchmarks/zoo.py [--kind all] [--only NAME ...] [--skip NAME ...]

Prints one line per model: how it was traced, how many cuts, how many of them are bit-identical.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from partopt._torchvision import models as tv
from partopt.errors import PartoptError
from partopt.graph import trace
from partopt.splitting import split

SIZES = {"inception_v3": 96, "alexnet": 64, "googlenet": 64}


def input_size(name: str) -> int:
    if name.startswith("vit"):
        return 518 if "h_14" in name else 224
    if name.startswith("maxvit"):
        return 224
    return SIZES.get(name, 64)


def check(name: str, kind: str) -> str:
    torch.manual_seed(0)
    model = tv.get_model(name, weights=None).eval()
    x = torch.randn(1, 3, input_size(name), input_size(name))
    try:
        graph = trace(model, x)
    except PartoptError as error:
        return f"| {name} | - | - | {str(error)[:160]} |"
    with torch.no_grad():
        cuts = graph.cuts(kind)
        pair = torch.randn(2, *x.shape[1:])
        want, want2 = model(x), model(pair)
        keep = x.clone()
        bad = []
        for i, cut in enumerate(cuts):
            head, tail = split(graph, cut)
            same = torch.equal(tail(*head(x)), want)
            if i % 8 == 0:
                same = same and torch.equal(tail(*head(pair)), want2)
            if not same:
                bad.append(cut.name)
        if not torch.equal(x, keep):
            bad.append("input overwritten")
    clean = sum(len(c.boundary) == 1 for c in cuts)
    verdict = "all bit-identical" if not bad else f"NOT EQUAL at {', '.join(bad[:5])}"
    return f"| {name} | {graph.source} | {len(cuts)} ({clean} clean) | {verdict} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", default="clean", choices=["clean", "all", "stage"])
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--skip", nargs="*", default=["vit_h_14", "regnet_y_128gf"])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = args.only or [n for n in tv.list_models(module=tv) if n not in args.skip]
    print("| model | traced by | cuts | head and tail against the whole model |\n|---|---|---|---|")
    failed = 0
    for name in names:
        start = time.monotonic()
        line = check(name, args.kind)
        failed += "NOT EQUAL" in line
        print(line, flush=True)
        print(f"  {time.monotonic() - start:.0f} s", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
