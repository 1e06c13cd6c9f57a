"""Blinded layers on a real network: accuracy, what each plan costs, what the parts of it cost.

    python benchmarks/blinding.py --model mobilenet_v2 --weights mobilenet_v2.pth --mean 0.5 \\
        --std 0.5 --calibrate photos --data labelled --safe-cut features.17.conv.2

One thread, without an enclave; the outside is the same core, in the clear and blinded alike, and is
reported apart. `--data` is a folder with photos and `labels.csv` (file, class_index); nothing is
calibrated on it. Accuracy is that of all layers in integers but depthwise ones, sums made directly.
"""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _shared import parser_of

from partopt.blinded.engine import PHASES, Engine
from partopt.blinded.exact import modular
from partopt.blinded.layers import Layer
from partopt.blinded.masks import Bank
from partopt.blinded.outside import Worker
from partopt.images.load import pictures_in
from partopt.models.load import LoadedModel, load_model
from partopt.pixels import read
from partopt.plans.accuracy import accuracy
from partopt.plans.blocks import blocks, safe_from
from partopt.plans.calibration import calibrate
from partopt.plans.measuring import Setting, measure
from partopt.plans.network import depthwise, integer_network
from partopt.plans.presets import Demands, compare
from partopt.profilers.handoff import handoff


class Timed:
    """An outside whose CPU time is counted: what is left is the inside's."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.spent = 0.0

    def __call__(self, name: str, masked: torch.Tensor) -> torch.Tensor:
        """The worker's answer."""
        begun = time.process_time()
        answer = self.worker(name, masked)
        self.spent += time.process_time() - begun
        return answer


def batches(pictures: np.ndarray, model: LoadedModel) -> list[torch.Tensor]:
    values = torch.from_numpy(pictures).float() / 255
    return list(model.preprocessing.normalise(values).split(8))


def labelled(
    folder: Path, model: LoadedModel, most: int
) -> tuple[list[torch.Tensor], torch.Tensor]:
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))[:most]
    pictures = [model.preprocessing.fit(read(folder / r["file"])) for r in rows]
    return batches(np.stack(pictures), model), torch.tensor([int(r["class_index"]) for r in rows])


def main() -> int:
    parser = parser_of(__doc__, "mobilenet_v2")
    parser.add_argument("--calibrate", type=Path, help="photos; none: generated values")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--safe-cut")
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    weights = None if args.weights == "none" else args.weights
    model = load_model(args.model, weights=weights, mean=args.mean, std=args.std)
    graph = model.trace()
    parts = blocks(graph)
    if args.calibrate:
        training = batches(pictures_in(args.calibrate, model.preprocessing, 48), model)
    else:
        side = model.preprocessing.input_size
        training = [torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))]
    network = integer_network(graph.module, calibrate(graph.module, training))
    names = [n for b in parts for n in network.blindable(b, depthwise)]
    bits = [network.layers[n].bits for n in names]
    print(f"{len(parts)} blocks, {len(names)} layers to blind, {min(bits)} to {max(bits)} bits")
    for name, why in network.inside.items():
        print(f"inside: {name} {why}")

    def direct(name: str, values: torch.Tensor) -> torch.Tensor:
        return modular(network.layers[name].layer, values)

    drop = 0.0
    if args.data:
        images, labels = labelled(args.data, model, args.photos)
        found = accuracy(graph.module, lambda x: network.run(x, names, direct), images, labels)
        print(found)
        drop = found.drop
    layers: list[Layer] = [network.layers[n].layer for n in names]
    outside = Timed(Worker(layers))
    engine = Engine(layers, outside, Bank(layers))
    image = training[0][:1]
    largest = max(4 * torch.Size(s).numel() for la in layers for s in (la.shape, la.output_shape))
    with handoff(max(largest, image.nbytes)) as hand:
        times: dict[int, float] = {}

        def carry(size: int) -> float:
            """Milliseconds one way, what is measured being the way and a short answer's."""
            if size not in times:
                times[size] = 1e3 * sorted(hand.once(size) for _ in range(7))[3]
            return times[size]

        setting = Setting(carry, repetitions=args.repetitions, skip=depthwise)
        costs = measure(network, parts, engine, image, setting)
    whole, inside = [], []
    for _ in range(args.repetitions):
        engine.bank.fill()
        begun, elsewhere = time.process_time(), outside.spent
        network.run(image, (), direct)
        middle = time.process_time()
        network.run(image, names, engine.request().compute)
        whole.append(middle - begun)
        inside.append(time.process_time() - middle - (outside.spent - elsewhere))
    plain, own = 1e3 * median(whole), 1e3 * median(inside)
    print(
        f"CPU ms inside: {plain:.0f} with nothing blinded, {own:.0f} with all these layers blinded"
    )
    for phase in PHASES:
        ms = 1e3 * sum(s[phase] for s in engine.counts.seconds.values()) / engine.counts.requests
        print(f"wall ms {phase}: {ms:.1f}")
    ways = sum(
        carry(4 * torch.Size(s).numel()) for la in layers for s in (la.shape, la.output_shape)
    )
    print(f"wall ms of crossings: {ways:.0f}")
    print(f"pads {engine.bank.bytes_each / 1e6:.1f} MB, checks {engine.check_bytes / 1e6:.1f} MB")
    safe = safe_from(parts, graph.cut(args.safe_cut)) if args.safe_cut else None
    for sustained in (False, True):
        print("\n| plan | online ms | sustained ms | placements | why not |\n|---|---|---|---|---|")
        demands = Demands(safe_from=safe, sustained=sustained)
        for c in compare(costs, demands, lambda plan: max(drop, 0.0)):
            if c.plan is None:
                print(f"| {c.preset} | | | | {c.lost} |")
            else:
                print(f"| {c.preset} | {c.online:.1f} | {c.sustained:.1f} | {c.plan} | {c.lost} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
