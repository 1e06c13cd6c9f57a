"""Every attacker at every cut: raw SSIM, score, interval and cost, as a Markdown table and JSON.

    python benchmarks/panel.py --model mobilenet_v2 --weights FILE --mean 0.5 --std 0.5
        --data FOLDER [--cuts stage] [--attackers linear,decoder,...] [--out panel.json]
        [--pictures FOLDER [--show FOLDER]]

The budget is small, for two cores: few images, epochs, and steps of the white-box attackers.
Figures are means over unseen images; attackers built on one another share what was fitted, and
their cost counts it all the same. Cuts that stand in --out already are not attacked again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from _shared import parser_of, small_decoder, small_white_box

from partopt.images.load import Split
from partopt.models.load import load_model
from partopt.optimizer.budgets import Budget
from partopt.reporting.attacked import as_dict
from partopt.studies.single import attack_cuts

NAMES = ("linear", "decoder", "cgan", "rmle", "hybrid", "ensemble")
TOLERANCE = 0.005  # by how much the decoder may fall below the linear attacker


def budget(args: argparse.Namespace) -> Budget:
    """Small settings for every attacker; white-box ones choose size, weight and levels."""
    steps, tuning, epochs = args.steps, args.tuning, args.epochs
    decoder = small_decoder(epochs)
    hybrid, rmle = small_white_box(decoder, steps, tuning)
    settings = {
        "linear": decoder.linear.settings(),
        "decoder": decoder.settings(),
        "cgan": {"epochs": args.cgan_epochs or epochs, "width": args.cgan_width},
        "rmle": rmle.settings(),
        "hybrid": hybrid.settings(),
        "ensemble": {"batch": 8, "tuning_images": tuning, "hybrid": hybrid, "rmle": rmle},
    }
    return Budget("quick", "screening", Split(*args.images), args.resolution, 20, settings)


def line(found: dict[str, Any]) -> list[str]:
    """Rows of the table for one cut."""
    rows = []
    for r in found["results"]:
        s, best = r["score"], r["attacker"] == found["strongest"]
        mark = "**" if best else ""
        figures = (
            f"{s['raw']:.3f} | {mark}{s['value']:.3f}{mark} | {s['low']:.2f}-{s['high']:.2f}"
            if s
            else "failed | - | -"
        )
        rows.append(
            f"| `{found['cut']}` | {r['attacker']} | {figures} | {r['seconds']:.0f} | "
            f"{r['image_steps']} |"
        )
    return rows


def wide(results: list[dict[str, Any]], names: list[str]) -> str:
    """One line a cut: raw SSIM / score (interval), seconds; the panel's maximum is bold."""
    lines = [
        "| cut | " + " | ".join(f"`{n}`" for n in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for found in results:
        by_name = {r["attacker"]: r for r in found["results"]}
        cells = []
        for name in names:
            r = by_name.get(name)
            s = r["score"] if r else None
            if r is None or s is None:
                cells.append("failed")
                continue
            value = f"{s['value']:.2f}"
            value = f"**{value}**" if name == found["strongest"] else value
            cells.append(
                f"{s['raw']:.3f} / {value} ({s['low']:.2f}-{s['high']:.2f}), {r['seconds']:.0f} s"
            )
        lines.append(f"| `{found['cut']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = parser_of(__doc__, "efficientnet_b0")
    parser.add_argument("--cuts", default="stage", help="clean, all, stage, paper or names")
    parser.add_argument("--max-cuts", type=int, default=24)
    parser.add_argument("--attackers", default=",".join(NAMES))
    parser.add_argument("--images", type=int, nargs=3, default=[256, 48, 32])
    parser.add_argument("--input-size", type=int)
    parser.add_argument("--resolution", type=int, default=96)
    parser.add_argument("--steps", type=int, default=40, help="of the white-box attackers")
    parser.add_argument("--tuning", type=int, default=6, help="images they choose settings on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--cgan-epochs", type=int, help="[--epochs]; 200 is the published number")
    parser.add_argument("--cgan-width", type=int, default=32)
    parser.add_argument("--pictures", type=Path, help="folder for a strip of pictures a cut")
    parser.add_argument("--show", type=Path, help="folder of the pictures shown [test images]")
    parser.add_argument("--out", type=Path, default=Path("panel.json"))
    args = parser.parse_args()
    names = args.attackers.split(",")
    small = budget(args)
    results: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out.is_file() else []
    done = {r["cut"] for r in results}
    model = load_model(args.model, weights="none", input_size=args.input_size)
    kind = args.cuts if args.cuts in ("clean", "all", "stage", "paper") else args.cuts.split(",")
    cuts = [c.name for c in model.trace().cuts(kind, max_cuts=args.max_cuts)]
    missing = [c for c in cuts if c not in done]
    for found in (
        attack_cuts(
            args.model,
            missing,
            attackers=names,
            weights=args.weights,
            mean=args.mean,
            std=args.std,
            data=args.data,
            budget=small,
            input_size=args.input_size,
            show=args.show,
        )
        if missing
        else ()
    ):
        results.append(as_dict(found))
        if args.pictures is not None:
            args.pictures.mkdir(parents=True, exist_ok=True)
            found.save(args.pictures / f"{args.model}-{found.cut}.png")
        print("\n".join(line(results[-1])), flush=True)
        args.out.write_text(json.dumps(results, indent=1))
    results.sort(key=lambda r: cuts.index(r["cut"]) if r["cut"] in cuts else -1)
    if results:
        print(f"{args.model}, floor {results[0]['floor']:.3f}\n")
    print(wide(results, names))
    bad = []
    for found in results:
        raw = {r["attacker"]: r["score"]["raw"] for r in found["results"] if r["score"]}
        if raw.get("decoder", 1.0) < raw.get("linear", 0.0) - TOLERANCE:
            bad.append(found["cut"])
    print(f"cuts where decoder < linear - {TOLERANCE}: {', '.join(bad) or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
