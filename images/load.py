"""Images for attacks, from a folder, telemetry or generated: train, validation and test."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed

from ..errors import DataError, PictureError, UsageError
from ..hashing import hash_array, hash_json
from ..pixels import read
from ..preprocessing import Preprocessing
from ..printable import printable
from . import ton_iot
from .dead_leaves import dead_leaves
from .folders import Found, formats, search

_FLAT = 16  # levels of 256
GENERATED = "generated: dead leaves"


@dataclass(frozen=True)
class Split:
    """How many images go where. The three parts are disjoint."""

    train: int
    validation: int
    test: int

    @property
    def total(self) -> int:
        """All three together."""
        return self.train + self.validation + self.test

    def shrunk_to(self, available: int) -> Split:
        """The same proportions for fewer images; unchanged where there are enough."""
        if available >= self.total:
            return self
        validation = max(1, self.validation * available // self.total)
        test = max(1, self.test * available // self.total)
        return Split(available - validation - test, validation, test)


@dataclass
class ImageSet:
    """Images at the model's input size, before normalisation, in split order.

    Attributes:
        images: uint8, shape (N, 3, H, W): train, then validation, then test.
        split: The sizes of the three parts.
        source: What the images are, for the result.
        digest: SHA-256 of pixels and split.
        skipped: Files that could not be used, each with the reason.
        warnings: What the user must know.
        notes: How the data was read, for whoever asks.
    """

    images: np.ndarray
    split: Split
    source: str
    digest: str
    names: list[str] = field(repr=False, default_factory=list)
    skipped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def part(self, name: str) -> np.ndarray:
        """The images of ``"train"``, ``"validation"`` or ``"test"``."""
        start, stop = self.bounds(name)
        return self.images[start:stop]

    def bounds(self, name: str) -> tuple[int, int]:
        """First and one-past-last row of a part."""
        s = self.split
        starts = {"train": 0, "validation": s.train, "test": s.train + s.validation}
        sizes = {"train": s.train, "validation": s.validation, "test": s.test}
        return starts[name], starts[name] + sizes[name]


def load_images(
    data: str | Path | None,
    preprocessing: Preprocessing,
    split: Split,
    *,
    seed: int = 0,
    minimum: int = 100,
    jobs: int = 2,
) -> ImageSet:
    """Read or generate images and split them.

    Args:
        data: A folder of images (searched with its subfolders, see `folders`; how files become
            pixels: `pixels`), ``ton-iot:FOLDER`` for telemetry (see `ton_iot`), or None for
            generated ones.
        preprocessing: The model's resize and crop.
        split: How many images are wanted; fewer are taken in the same proportions, with a warning.
        seed: Decides which images are taken and where they go.
        minimum: Fewer usable images than this are an error.
        jobs: Threads that decode.

    Raises:
        UsageError: `data` is no folder.
        DataError: Fewer than `minimum` usable images.
    """
    if data is None:
        images = dead_leaves(split.total, preprocessing.input_size, seed)
        names = [f"leaves-{seed}-{i}" for i in range(split.total)]
        note = (
            "generated images (dead leaves): no --data was given; attack scores on your own "
            "images can be higher"
        )
        return _finish(images, split, f"{GENERATED}, seed {seed}", names, [], [note])
    if str(data).startswith(ton_iot.PREFIX):
        return _telemetry(str(data), preprocessing, split, seed, minimum)
    folder = Path(data)
    if not folder.is_dir():
        raise UsageError(f"`data` got {str(data)!r}, which is no folder; give a folder of images")
    found = search(folder)
    paths = found.pictures
    order = np.random.default_rng(seed).permutation(len(paths))
    taken, names, skipped = _decode_until(
        [paths[i] for i in order], folder, preprocessing, split.total, jobs
    )
    if len(taken) < minimum:
        raise DataError(
            f"`data` got {str(data)!r} with {len(taken)} usable images{_why(found, skipped)}; "
            f"at least {minimum} different ones are needed"
        )
    told = found.said()
    if skipped:
        told.append(f"{len(skipped)} image files were skipped: {'; '.join(skipped[:5])}")
    if len(taken) < split.total:
        told.append(
            f"{len(taken)} images were found, the budget wants {split.total}: "
            "with more the attackers could be stronger"
        )
        split = split.shrunk_to(len(taken))
    if flat := sum(int(np.ptp(image)) < _FLAT for image in taken):
        told.append(
            f"{flat} of {len(taken)} images have hardly any contrast (all values within {_FLAT} of "
            "256), which no attack can be seen to rebuild; 10 or 12 bits stored in 16 look so"
        )
    name = printable(folder.name or folder.resolve().name)
    source = f"folder: {name}, {len(taken)} of {len(paths)} images, seed {seed}"
    # What was left out by kind comes first: a result keeps the beginning of this list.
    skipped = [*found.skipped(), *skipped]
    return _finish(np.stack(taken), split, source, names, skipped, told)


def _why(found: Found, skipped: list[str]) -> str:
    """Why a folder has no more usable images."""
    bad = f", {len(skipped)} skipped (first: {skipped[0]})" if skipped else ""
    told = found.said()
    if not found.pictures and not found.unread:
        told.append(found.holds())
    return bad + (f" ({'; '.join(told)})" if told else "")


def pictures_in(folder: str | Path, preprocessing: Preprocessing, most: int) -> np.ndarray:
    """The first images of a folder by name, uint8 (N, 3, S, S) at the model's input size S.

    Raises:
        UsageError: `folder` is no folder, or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"`show` got {str(folder)!r}, which is no folder; give a folder of images")
    found = search(folder)
    taken, _, skipped = _decode_until(found.pictures, folder, preprocessing, most, 1)
    if not taken:
        raise UsageError(
            f"`show` got {str(folder)!r} without a usable image{_why(found, skipped)}; add one"
        )
    return np.stack(taken)


def _telemetry(
    data: str, preprocessing: Preprocessing, split: Split, seed: int, minimum: int
) -> ImageSet:
    """Windows of TON_IoT telemetry, classes by turns in each part."""
    folder = Path(data.removeprefix(ton_iot.PREFIX))
    shares = (split.train, split.validation, split.test)
    telemetry = ton_iot.read(folder, shares, seed)
    rng = np.random.default_rng([seed, 1])
    images, names, sizes = [], [], []
    for wanted, part in zip(shares, ton_iot.PARTS, strict=True):
        windows = telemetry.parts[part]
        taken = ton_iot.balanced(windows.classes, wanted, rng)
        images.append(ton_iot.to_images(windows.values[taken], preprocessing.input_size))
        names += [f"{ton_iot.CLASSES[windows.classes[i]]} {windows.starts[i]}" for i in taken]
        sizes.append(len(taken))
    total = sum(sizes)
    if total < minimum or not all(sizes):
        raise DataError(
            f"`data` got {data!r} with {total} usable windows ({'/'.join(map(str, sizes))} for "
            f"train/validation/test); at least {minimum} are needed, some of them in each part"
        )
    warnings = telemetry.counts.warnings()
    if total < split.total:
        warnings.append(
            f"{total} windows were found, the budget wants {split.total}: with more the attackers "
            "could be stronger"
        )
    source = (
        f"ton-iot: {folder.name}, {total} windows of {ton_iot.ROWS} rows x "
        f"{len(telemetry.features)} features, split by time block, seed {seed}"
    )
    made = _finish(np.concatenate(images), Split(*sizes), source, names, [], warnings)
    made.notes = telemetry.counts.notes()
    return made


def _decode_until(
    paths: list[Path], folder: Path, preprocessing: Preprocessing, wanted: int, jobs: int
) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Decode in order until `wanted` different images are there."""
    taken: list[np.ndarray] = []
    names: list[str] = []
    skipped: list[str] = []
    seen: set[str] = set()
    position = 0
    while len(taken) < wanted and position < len(paths):
        chunk = paths[position : position + max(16, wanted - len(taken))]
        position += len(chunk)
        # Pillow warns of what `_decode` then reports by name; around the threads, not in them,
        # since filters are the whole process's.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decoded = Parallel(n_jobs=jobs, prefer="threads")(
                delayed(_decode)(p, preprocessing) for p in chunk
            )
        for path, (array, reason) in zip(chunk, decoded, strict=True):
            name = printable(str(path.relative_to(folder)))
            if array is None:
                skipped.append(f"{name} ({reason})")
                continue
            # A copy of a training image among the test images would look like a leak.
            digest = hash_array(array)
            if digest in seen:
                skipped.append(f"{name} (duplicate)")
                continue
            seen.add(digest)
            taken.append(array)
            names.append(name)
    return taken[:wanted], names[:wanted], skipped


def _decode(path: Path, preprocessing: Preprocessing) -> tuple[np.ndarray | None, str]:
    """The picture, or None and why it cannot be had."""
    try:
        return preprocessing.fit(read(path, formats=formats())), ""
    except (PictureError, ImportError) as error:
        return None, printable(str(error))
    except OSError as error:
        return None, error.strerror or type(error).__name__


def _finish(
    images: np.ndarray,
    split: Split,
    source: str,
    names: list[str],
    skipped: list[str],
    warnings: list[str],
) -> ImageSet:
    parts = [split.train, split.validation, split.test]
    digest = hash_json([hash_array(images), parts])
    return ImageSet(images, split, source, digest, names, skipped, warnings)


def to_float(images: np.ndarray) -> torch.Tensor:
    """uint8 (N, 3, H, W) to float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).float().div_(255)


def at_resolution(images: np.ndarray, resolution: int, batch: int = 64) -> np.ndarray:
    """Downscale uint8 images with antialiasing to (N, 3, resolution, resolution)."""
    if images.shape[-1] == resolution and images.shape[-2] == resolution:
        return images
    out = np.empty((len(images), 3, resolution, resolution), np.uint8)
    for start in range(0, len(images), batch):
        part = to_float(images[start : start + batch])
        small = torch.nn.functional.interpolate(
            part, (resolution, resolution), mode="bilinear", antialias=True, align_corners=False
        )
        out[start : start + batch] = (small.clamp(0, 1) * 255).round().byte().numpy()
    return out
