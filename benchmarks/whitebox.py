"""What white-box descent reaches by total variation, levels and size, from both starts.

    python benchmarks/whitebox.py --model mobilenet_v2 --weights FILE --mean 0.5 --std 0.5
        --data FOLDER --cuts features.3.add features.7.conv.3

Raw SSIM, mean over unseen images, as a Markdown table: `hybrid` from the decoder's picture, `rmle`
from the mean image, each with every setting instead of the one that it would choose.
"""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import replace

from _shared import parser_of, small_decoder, small_white_box

from partopt.attackers.inversion import LEVELS, SIZES, Objective
from partopt.attackers.scoring import ssim_of
from partopt.images.load import Split
from partopt.optimizer.attempt import Wish, attempt
from partopt.optimizer.budgets import Budget
from partopt.optimizer.prepare import prepare
from partopt.optimizer.requests import FindRequest
from partopt.optimizer.watcher import Silent


def main() -> int:
    parser = parser_of(__doc__, "efficientnet_b0")
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--images", type=int, nargs=3, default=[256, 48, 32])
    parser.add_argument("--tried-on", type=int, default=8, help="test images")
    parser.add_argument("--resolution", type=int, default=96)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--tvs", type=float, nargs="+", default=[0.3, 3.0, 30.0])
    args = parser.parse_args()
    hybrid, rmle = small_white_box(small_decoder(3), args.steps, 1)
    small = Budget(
        "quick",
        "screening",
        Split(*args.images),
        args.resolution,
        20,
        {"hybrid": hybrid.settings(), "rmle": rmle.settings()},
    )
    options = {name: getattr(args, name) for name in ("cuts", "weights", "mean", "std", "data")}
    ground = prepare(FindRequest.of(args.model, {**options, "budget": small}), Silent())
    bench = ground.bench
    print(f"floor {ground.floor.mean():.3f}, start: the picture as it is before the descent\n")
    heads = " | ".join(f"levels {', '.join(map(str, levels))}" for levels in LEVELS)
    print(f"| cut | attacker | size | total variation | start | {heads} | seconds a cell |")
    print("|---" * (6 + len(LEVELS)) + "|")
    for cut in ground.cuts:
        for attacker in (replace(hybrid), replace(rmle)):
            found = attempt(bench, cut, attacker, Wish(also=ground.cuts))
            fitted, unseen = found.attacker, found.unseen
            maps, truth = unseen.features.take(range(args.tried_on)), unseen.images[: args.tried_on]

            def reached(
                steps: int, objective: Objective, attacker=fitted, maps=maps, truth=truth
            ) -> float:
                attacker.objective, attacker.steps = objective, steps
                return float(ssim_of(attacker.reconstruct, maps, truth).mean())

            for size, tv in itertools.product(SIZES, args.tvs):
                start = time.monotonic()
                values = [reached(args.steps, Objective("l2", tv, size, lv)) for lv in LEVELS]
                each = (time.monotonic() - start) / len(LEVELS)
                best = max(values)
                cells = " | ".join(f"**{v:.3f}**" if v == best else f"{v:.3f}" for v in values)
                before = reached(0, Objective("l2", tv, size))
                row = f"`{cut.name}` | {attacker.name} | {size} | {tv:g} | {before:.3f}"
                print(f"| {row} | {cells} | {each:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
