"""An outside attacker and ours at the same cuts, on the same photos, at the same size.

    python benchmarks/outside.py --model mobilenet_v2 --weights FILE --mean 0.5 --std 0.5
        --cuts features.14.conv.3 ... --train FOLDER --test FOLDER --res 96
        --script ATTACKER.py --results FOLDER [--attackers decoder stack] [--budget standard]

The script is any with the command line that stands in `_script.py`; what it writes is kept in
--results as MODEL-CUT.json and .npz, and what lies there is not made again. Photos are prepared as
in torchvision's classification preset (short side to size * 256 / 224, centre crop). Ours learn
from the same training photos and their mirror images and choose on the same validation photos.

Both are scored on one floor, partopt's; the interval of the difference resamples photos together.
Core-minutes are processor time of all threads, with reading the photos and making the features;
what an attacker takes as fitted by an earlier one counts as if it had fitted it. Cost can only be
compared where both sides ran on the same kind of machine. Ends with 1 where at some cut all of
ours stay more than 0.005 below.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _script import Outside, Setting, existing, file_of, read, run

from partopt import pixels
from partopt.arguments.choices import BudgetName
from partopt.attackers.base import Attacker, Fitted, Key
from partopt.attackers.decoder import Decoder
from partopt.attackers.features import CROPS, MIRRORED, FeatureStore
from partopt.attackers.linear import Linear
from partopt.attackers.scoring import Score, corrected
from partopt.attackers.stack import Stack
from partopt.errors import DataError, PartoptError
from partopt.graph.build import Cut
from partopt.hashing import hash_array, hash_json
from partopt.images.load import ImageSet, Split
from partopt.models.load import LoadedModel, load_model
from partopt.optimizer.attempt import Bench, Failed, Wish, attempt
from partopt.optimizer.budgets import BUDGETS
from partopt.optimizer.floor import floor_of
from partopt.optimizer.pairs import views_at
from partopt.preprocessing import Preprocessing

TOLERANCE = 0.005  # of the score, by which ours may stay below
FLOORS = 0.01  # of SSIM, by which two floors on the same photos may differ without a word
HEADS = (
    "cut",
    "outside score",
    "attacker",
    "our score",
    "difference",
    "outside core-minutes",
    "our core-minutes",
    "holds",
)


@dataclass(frozen=True, kw_only=True)
class Ours:
    """One of our attackers at a cut; `score` is None where it failed, and `note` says why."""

    attacker: str
    settings: str
    score: Score | None
    difference: float
    low: float
    high: float
    held_out: float
    seconds: float
    note: str

    @property
    def holds(self) -> bool:
        """Whether it is at least as strong as the outside attacker."""
        return self.score is not None and self.difference >= -TOLERANCE


def panel(budget: str, names: list[str]) -> dict[str, Attacker]:
    """The attackers with the settings of a budget; `stack` is of its linear one and its decoder."""
    known = BUDGETS[budget]
    found = known.panel(names)
    if "stack" in found and "stack" not in {**known.settings, **known.others}:
        linear, decoder = known.panel(["linear"])["linear"], known.panel(["decoder"])["decoder"]
        assert isinstance(linear, Linear)
        assert isinstance(decoder, Decoder)
        found["stack"] = Stack(linear=linear, decoder=decoder)
    return found


def photos(setting: Setting) -> ImageSet:
    """The script's photos as the network gets them.

    Raises:
        DataError: One cannot be read, or is both learned from and tested on.
    """
    parts = setting.photos()
    preprocessing = preprocessing_of(setting)
    images = np.stack([preprocessing.fit(pixels.read(p)) for part in parts for p in part])
    split = Split(*(len(part) for part in parts))
    learned = {hash_array(i) for i in images[: -split.test]}
    if any(hash_array(i) in learned for i in images[-split.test :]):
        raise DataError("`--test` holds a photo of `--train`; give others")
    return ImageSet(
        images,
        split,
        f"{len(images)} photos",
        hash_json([hash_array(images), [split.train, split.validation, split.test]]),
        [p.name for part in parts for p in part],
    )


def preprocessing_of(setting: Setting) -> Preprocessing:
    """torchvision's classification preset with this mean and deviation."""
    mean, std = ((v[0], v[1], v[2]) for v in (setting.mean, setting.std))
    return Preprocessing(setting.size, round(setting.size * 256 / 224), mean, std, source="given")


def loaded(setting: Setting) -> LoadedModel:
    """The model, with that preprocessing."""
    model = load_model(setting.model, weights=setting.weights, input_size=setting.size)
    model.preprocessing = preprocessing_of(setting)
    return model


def attack(
    bench: Bench, cut: Cut, attackers: dict[str, Attacker], outside: Outside, spent: float
) -> Iterator[Ours]:
    """Run ours at a cut; `spent` are processor seconds that all of them would have to pay."""
    start = time.process_time()
    views = max((views_at(cut, a) for a in attackers.values()), default=0)
    for part in ("train", MIRRORED, *(f"{CROPS}{n}" for n in range(1, views + 1))):
        bench.store.rows(cut, part)
    spent += time.process_time() - start
    fitted: dict[Key, Fitted] = {}
    for name, attacker in attackers.items():
        known = set(fitted)
        start = time.process_time()
        try:
            reached = attempt(bench, cut, attacker, Wish(fitted=fitted))
        except Failed as error:
            seconds = spent + time.process_time() - start
            yield _failed(name, error, seconds)
            continue
        # What is kept carries processor seconds from here on, and so does what is reused.
        own = time.process_time() - start + reached.seconds - reached.own_seconds
        for key in set(fitted) - known:
            fitted[key] = replace(fitted[key], seconds=own)
        difference, low, high = paired(
            reached.per_side[bench.resolution], outside.per_image, bench.floor
        )
        yield Ours(
            attacker=name,
            settings=reached.settings,
            score=reached.score,
            difference=difference,
            low=low,
            high=high,
            held_out=reached.held_out(),
            seconds=spent + own,
            note=reached.note,
        )


def _failed(name: str, error: Failed, seconds: float) -> Ours:
    return Ours(
        attacker=name,
        settings=error.settings,
        score=None,
        difference=-1.0,
        low=-1.0,
        high=-1.0,
        held_out=0.0,
        seconds=seconds,
        note=f"failed: {error}",
    )


def paired(
    ours: np.ndarray, theirs: np.ndarray, floor: np.ndarray, resamples: int = 2000
) -> tuple[float, float, float]:
    """Difference of two scores on the same photos, and its 95 % interval."""
    index = np.random.default_rng(0).integers(0, len(floor), (resamples, len(floor)))
    below = floor[index].mean(1)
    spread = corrected(ours[index].mean(1), below) - corrected(theirs[index].mean(1), below)
    value = corrected(ours.mean(), floor.mean()) - corrected(theirs.mean(), floor.mean())
    low, high = np.quantile(spread, [0.025, 0.975])
    return float(value), float(low), float(high)


def line(cut: str, outside: Outside, theirs: Score, ours: Ours) -> str:
    """A row of the table."""
    at_most = "" if outside.measured else "at most "
    s = ours.score
    cells = [
        f"`{cut}`",
        f"{theirs.value:.3f} ({theirs.low:.3f}-{theirs.high:.3f})",
        f"`{ours.attacker}`",
        f"{s.value:.3f} ({s.low:.3f}-{s.high:.3f})" if s else ours.note,
        f"{ours.difference:+.3f} ({ours.low:+.3f} to {ours.high:+.3f})" if s else "-",
        f"{at_most}{outside.seconds / 60:.1f}",
        f"{ours.seconds / 60:.1f}",
        "yes" if ours.holds else "**no**",
    ]
    return "| " + " | ".join(cells) + " |"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--mean", type=float, nargs="+", default=[0.485, 0.456, 0.406])
    parser.add_argument("--std", type=float, nargs="+", default=[0.229, 0.224, 0.225])
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--train", nargs="+", required=True)
    parser.add_argument("--test", nargs="+", required=True)
    parser.add_argument("--size", type=int, default=224, help="side of the network's input")
    parser.add_argument("--res", type=int, default=96, help="side at which photos are scored")
    parser.add_argument("--validation", type=int, default=100, help="as many as the script takes")
    parser.add_argument("--script", type=Path, help="the outside attacker")
    parser.add_argument("--results", type=Path, default=Path("outside"), help="its files")
    parser.add_argument("--epochs", type=int, default=12, help="of the script")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--attackers", nargs="+", default=["decoder"])
    parser.add_argument("--budget", choices=BudgetName.__args__, default="standard")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON")
    return parser.parse_args()


def main() -> int:
    args = parsed()
    torch.set_num_threads(args.threads)
    setting = Setting(
        model=args.model,
        weights=args.weights,
        mean=tuple(args.mean * (3 // len(args.mean))),
        std=tuple(args.std * (3 // len(args.std))),
        train=tuple(args.train),
        test=tuple(args.test),
        size=args.size,
        res=args.res,
        validation=args.validation,
        seed=args.seed,
        threads=args.threads,
    )
    attackers = panel(args.budget, args.attackers)
    files = [file_of(args.results, setting, cut) for cut in args.cuts]
    existing(args.script, files)
    for cut, path in zip(args.cuts, files, strict=True):
        if path.is_file():
            read(path, setting, cut)  # what is of no use is refused before hours of work
    start = time.process_time()
    model = loaded(setting)
    graph, images = model.trace(), photos(setting)
    cuts = {name: graph.cuts([name])[0] for name in args.cuts}
    floor = floor_of(images, setting.res, setting.seed)
    spent = time.process_time() - start
    s = images.split
    print(
        f"{model.spec}, {model.weights}; {s.train} photos to train on, {s.validation} to choose "
        f"on, {s.test} to test on; {setting.res}x{setting.res}, floor {floor.mean():.4f}, budget "
        f"{args.budget}, threads {setting.threads}\n\n| {' | '.join(HEADS)} |\n" + "|---" * 8 + "|"
    )
    rows: list[dict[str, Any]] = []
    behind = []
    # Features are made anew: they are part of the cost.
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder), graph, model.preprocessing, images, model.weights_hash)
        bench = Bench(store=store, floors={setting.res: floor}, seed=setting.seed)
        for name, path in zip(args.cuts, files, strict=True):
            if not path.is_file():
                run(args.script, setting, name, path, epochs=args.epochs, bf16=args.bf16)
            outside = read(path, setting, name)
            if abs(outside.floor - floor.mean()) > FLOORS:
                print(
                    f"{name}: the script's floor is {outside.floor:.3f}, ours {floor.mean():.3f}; "
                    "see whether it prepares photos in another way",
                    file=sys.stderr,
                )
            theirs = bench.score({setting.res: outside.per_image}).strict
            held = False
            for ours in attack(bench, cuts[name], attackers, outside, spent):
                held = held or ours.holds
                print(line(name, outside, theirs, ours), flush=True)
                record = {**asdict(ours), "holds": ours.holds}
                rows.append(
                    {
                        "cut": name,
                        "outside": {**outside.as_dict(), "rescored": asdict(theirs)},
                        "ours": record,
                    }
                )
                if args.out is not None:
                    whole = {
                        **asdict(setting),
                        "budget": args.budget,
                        "floor": float(floor.mean()),
                        "rows": rows,
                    }
                    args.out.write_text(json.dumps(whole, indent=1))
            if not held:
                behind.append(name)
    print(
        f"\ncuts where all of ours are more than {TOLERANCE} below: {', '.join(behind) or 'none'}"
    )
    return 1 if behind else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PartoptError as error:
        sys.exit(str(error))
