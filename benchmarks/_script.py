"""An attacker that is no part of partopt: a script that is run, and what it wrote.

Its command line: --model --weights --cut --mean --std --train --test --size --res --epochs
--threads --seed --bf16 --out FILE.json. It shuffles the training photos' sorted paths by
`random.Random(seed)`, keeps the first 100 for validation, and learns from the others and their
mirror images. It writes FILE.json (model, weights, cut, size, res, seed, validation, mean, std,
photos, score, low, high, epochs, seconds, threads) and FILE.npz (got: SSIM per test photo; floor:
that of its blind picture; names: of the files).
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from partopt.errors import DataError, UsageError

_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_CPU = re.compile(r"cpu ([\d.]+)\+([\d.]+)")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the script and partopt's attackers have in common, but for the cut.

    Attributes:
        model: A torchvision name, or whatever else both understand.
        weights: File of the weights.
        mean, std: Of the network's input, one value a channel.
        train, test: Folders of photos.
        size: Side of the network's input, pixels.
        res: Side at which photos are rebuilt and scored, pixels.
        validation: So many of the training photos choose settings and epochs.
        seed: For everything random, the choice of those photos included.
        threads: Of either side.
    """

    model: str
    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]
    size: int
    res: int
    validation: int
    seed: int
    threads: int

    def photos(self) -> tuple[list[Path], list[Path], list[Path]]:
        """The files to train on, to validate on and to test on."""
        order = [str(p) for p in pictures(self.train)]
        random.Random(self.seed).shuffle(order)
        held, train = order[: self.validation], order[self.validation :]
        test = pictures(self.test)
        if not held or not train or not test:
            raise DataError(
                f"`--train` and `--test` hold {len(order)} and {len(test)} photos; give more than "
                f"{self.validation} to train on, and some to test on"
            )
        return [Path(p) for p in train], [Path(p) for p in held], test


def pictures(folders: Sequence[str]) -> list[Path]:
    """All pictures below folders, by path within each."""
    return [
        Path(path)
        for folder in folders
        for path in sorted(
            os.path.join(parent, name)
            for parent, _, names in os.walk(folder, followlinks=True)
            for name in names
            if name.lower().endswith(_ENDINGS)
        )
    ]


@dataclass(frozen=True, kw_only=True)
class Outside:
    """What the script reached at a cut.

    Attributes:
        per_image: SSIM per test photo, shape (test photos,).
        floor: Mean SSIM of its own blind picture.
        score, low, high: As it states them.
        epochs: As many as it had.
        seconds: Processor time, or wall time times threads where `measured` is False.
        measured: Whether the processor time was measured.
    """

    per_image: np.ndarray
    floor: float
    score: float
    low: float
    high: float
    epochs: int
    seconds: float
    measured: bool

    def as_dict(self) -> dict[str, Any]:
        """All but the values per photo."""
        return {k: v for k, v in asdict(self).items() if k != "per_image"}


def file_of(folder: Path, setting: Setting, cut: str) -> Path:
    """Where the result of a cut lies."""
    return folder / f"{setting.model}-{cut}.json"


def run(script: Path, setting: Setting, cut: str, out: Path, *, epochs: int, bf16: bool) -> None:
    """Run the script at a cut; beside its files goes FILE.time with the processor time it took.

    Raises:
        DataError: It failed.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    s = setting
    command = [sys.executable, str(script), "--model", s.model, "--weights", s.weights]
    command += ["--cut", cut, "--mean", *map(str, s.mean), "--std", *map(str, s.std)]
    command += ["--train", *s.train, "--test", *s.test]
    command += ["--size", str(s.size), "--res", str(s.res), "--epochs", str(epochs)]
    command += ["--threads", str(s.threads), "--seed", str(s.seed), "--out", str(out)]
    threads = {"OMP_NUM_THREADS": str(s.threads)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        [*command, *(["--bf16"] if bf16 else [])], env={**os.environ, **threads}, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        # What it left behind is no result.
        out.unlink(missing_ok=True)
        raise DataError(f"`--script` ended with {ended.returncode} at {cut}; see what it wrote")
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    out.with_suffix(".time").write_text(f"cpu {user:.2f}+{system:.2f}\n")


def read(path: Path, setting: Setting, cut: str) -> Outside:
    """A result of the script, if it is one of this cut, these photos and these sizes.

    The processor time is read from FILE.time (`/usr/bin/time -f "cpu %U+%S"` writes such files).

    Raises:
        DataError: It is not, or it is not whole.
    """
    try:
        stated = json.loads(path.read_text())
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
            got, floor = np.asarray(arrays["got"], float), np.asarray(arrays["floor"], float)
            names = [str(n) for n in arrays["names"]]
        train, _, test = setting.photos()
        wanted = {
            "model": setting.model,
            "cut": cut,
            "size": setting.size,
            "res": setting.res,
            "seed": setting.seed,
            "validation": setting.validation,
            "photos": len(train),
        }
        wrong = [f"{k} {stated[k]!r} for {v!r}" for k, v in wanted.items() if stated[k] != v]
        for name in ("mean", "std"):
            channels = tuple(map(float, stated[name])) * (3 // len(stated[name]))
            if channels != getattr(setting, name):
                wrong.append(f"{name} {channels} for {getattr(setting, name)}")
        if Path(str(stated["weights"])).name != Path(setting.weights).name:
            wrong.append(f"weights {stated['weights']!r} for {setting.weights!r}")
        if names != [p.name for p in test]:
            wrong.append("other test photos")
        if wrong:
            raise DataError(
                f"`--results` got {str(path)!r}, which is of another run ({'; '.join(wrong)}); "
                "name another folder"
            )
        if got.shape != floor.shape or got.shape != (len(test),) or not np.isfinite(got).all():
            raise DataError(f"`--results` got {str(path)!r} with a score missing; make it again")
        seconds = _cpu(path.with_suffix(".time"))
        return Outside(
            per_image=got,
            floor=float(floor.mean()),
            score=float(stated["score"]),
            low=float(stated["low"]),
            high=float(stated["high"]),
            epochs=int(stated["epochs"]),
            seconds=seconds or float(stated["seconds"]) * int(stated["threads"]),
            measured=bool(seconds),
        )
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise DataError(
            f"`--results` got {str(path)!r}, which is not what the script writes "
            f"({type(error).__name__}: {error}); make it again with --script"
        ) from error


def existing(script: Path | None, files: Sequence[Path]) -> None:
    """Refuse a run that would end at a missing result.

    Raises:
        UsageError: One is missing and there is no script to make it.
    """
    missing = [f.name for f in files if not f.is_file()]
    if script is None and missing:
        raise UsageError(f"`--results` lacks {', '.join(missing)}; give --script, or those files")


def _cpu(path: Path) -> float:
    """Processor seconds, 0 where they were not kept."""
    found = _CPU.search(path.read_text()) if path.is_file() else None
    return float(found[1]) + float(found[2]) if found else 0.0
