"""A head by PyTorch, by PyTorch with --optimise auto, and by ONNX Runtime: time and answers.

    python benchmarks/engines.py --weights FOLDER [NAME...] [--rounds 30] [--images 20]

Cuts lie at ends of stages. One run, one thread, every way in every round in an order of its own;
medians of the thread's computing time, as ratios to the program in PyTorch. Answers are those of
the whole model, with its tail in PyTorch, on generated images.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from partopt.enclave_runner.bundles.halves import IMAGES, generated_pictures
from partopt.enclave_runner.lowering.choosing import session_of
from partopt.enclave_runner.lowering.model import lowered
from partopt.enclave_runner.lowering.optimised import LEVELS, optimised
from partopt.enclave_runner.program import optimise as opt
from partopt.enclave_runner.program.onnx_held import held
from partopt.enclave_runner.program.recording import record
from partopt.errors import PartoptError
from partopt.graph.splitting import split
from partopt.models.load import load_model

# Network, a stage's end, and its weights where they are at hand.
NETWORKS = {
    "mobilenet_v2": ("features.14.conv.3", "mobilenet_v2.pth"),
    "squeezenet1_1": ("features.7", "squeezenet1_1.pth"),
    "efficientnet_b4": ("features.4", "efficientnet_b4.pth"),
    "resnet50": ("layer2", ""),
    "vgg16": ("features.16", ""),
    "regnet_y_1_6gf": ("trunk_output.block2", ""),
    "vit_b_16": ("encoder.layers.encoder_layer_3", ""),
    "swin_t": ("features.3", ""),
    "convnext_tiny": ("features.3", ""),
}


def measured(name: str, rounds: int, images: int, weights: Path | None) -> dict[str, Any]:
    wanted, file = NETWORKS[name]
    path = weights / file if weights is not None and file else None
    real = path is not None and path.is_file()
    torch.manual_seed(0)
    loaded = load_model(name, weights=str(path) if real else "none")
    for layer in loaded.module.modules():
        # A classifier of zeros, as some have before they are trained, would hide any difference.
        if isinstance(layer, torch.nn.Linear) and not layer.weight.any():
            torch.nn.init.normal_(layer.weight, std=0.02)
    graph = loaded.trace()
    # The last clean cut that belongs to the stage.
    cut = [c for c in graph.cuts("clean") if (c.name + ".").startswith(wanted + ".")][-1]
    parts = split(graph, cut, flat=True)
    pictures = generated_pictures(loaded, 0)[:images]
    example = pictures[0]
    head = record(parts[0], [example], True)
    tail = record(parts[1], [t.clone() for t in head(example)], True)
    quick = opt.quickest(parts[0], head, tail, example, None, True)
    ways: dict[str, Callable[[], Any]] = {
        "torch": lambda: head(example),
        "torch, --optimise auto": lambda: quick.program(example),
    }
    plain = lowered(head, [example], True)
    sessions = {}
    for level in LEVELS:
        model = optimised(plain, level)
        sessions[level] = session_of(model)
        ways[f"ort, {level}"] = lambda run=sessions[level]: run([example])
    times: dict[str, list[float]] = {way: [] for way in ways}
    order, shuffled = list(ways), random.Random(0)
    for turn in range(rounds + 3):
        shuffled.shuffle(order)
        for way in order:
            begun = time.thread_time()
            ways[way]()
            if turn >= 3:
                times[way].append(time.thread_time() - begun)
    medians = {way: statistics.median(values) for way, values in times.items()}
    best = min(LEVELS, key=lambda level: medians[f"ort, {level}"])
    worst, same = 0.0, 0
    with torch.inference_mode():
        for picture in pictures:
            (truth,) = [loaded.module(picture)]
            between = [torch.from_numpy(a.copy()) for a in sessions[best]([picture])]
            answer = tail(*between)[0]
            off = float((answer - truth).abs().max() / truth.abs().max())
            if off != off:
                raise SystemExit(f"{name} answers with what is no number")
            worst = max(worst, off)
            same += int((answer.argmax() == truth.argmax()).item())
    return {
        "network": name,
        "weights": "real" if real else "random",
        "cut": cut.name,
        "torch_ms": medians["torch"] * 1e3,
        "ratios": {way: medians["torch"] / value for way, value in medians.items()},
        "level": best,
        "operators": len(held(optimised(plain, best)).nodes),
        "steps": len(head.steps),
        "largest_difference": worst,
        "same_top1": same,
        "images": len(pictures),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--weights", type=Path, required=True, help="folder of NAME.pth files")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in args.names:
        try:
            row = measured(name, args.rounds, args.images, args.weights)
        except PartoptError as error:
            print(f"{name}: {error}", flush=True)
            continue
        rows.append(row)
        ratios = ", ".join(f"{way} {value:.2f}" for way, value in row["ratios"].items())
        print(
            f"{name} ({row['weights']}) at {row['cut']}: torch {row['torch_ms']:.1f} ms; {ratios}; "
            f"off by {row['largest_difference']:.1e} of the largest logit, top-1 equal on "
            f"{row['same_top1']} of {row['images']}",
            flush=True,
        )
        if args.out is not None:
            args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
