"""The floor: SSIM per test image of the attacker that never sees the features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..attackers.base import Context
from ..attackers.blind import Blind
from ..attackers.pairs import Pairs
from ..attackers.scoring import ssim_of
from ..cache import cache_dir, read_sealed, write_sealed
from ..hashing import derive_seed, hash_json
from ..identity.sources import attack_source
from ..images.load import ImageSet, at_resolution
from ..notices import notice


def floor_of(images: ImageSet, resolution: int, seed: int) -> np.ndarray:
    """SSIM of the blind attacker on each test image, shape (test images,)."""
    return floors_of(images, resolution, (resolution,), seed)[resolution]


def floors_of(
    images: ImageSet, resolution: int, sides: Sequence[int], seed: int
) -> dict[int, np.ndarray]:
    """The floor at each side: a blind attacker of its own, fitted on pictures of that side.

    Pictures are those of the run scaled down once more, which is what reconstructions are compared
    with there (`attackers.scales`).

    Args:
        images: All three parts.
        resolution: Side at which images are rebuilt, in pixels.
        sides: At which they are scored, `resolution` or less.
        seed: Of the run.
    """
    attacker = Blind()
    pictures: np.ndarray | None = None
    floors = {}
    for side in sides:
        key = hash_json([attack_source(), images.digest, resolution, side, seed, repr(attacker)])
        path = cache_dir("floors") / f"{key[:32]}.json"
        kept = _kept(path)
        if kept is None or kept.shape != (images.split.test,) or not np.isfinite(kept).all():
            if pictures is None:
                pictures = at_resolution(images.images, resolution)
            kept = _made(images, at_resolution(pictures, side), seed)
            write_sealed(path, [float(v) for v in kept])
        floors[side] = kept
    return floors


def _made(images: ImageSet, pictures: np.ndarray, seed: int) -> np.ndarray:
    """Fit a blind attacker on pictures of one side, and score it there."""
    attacker = Blind()
    part = {p: pictures[slice(*images.bounds(p))] for p in ("train", "validation", "test")}
    nothing = np.zeros((1, 1, 1, 1), np.float16)
    pairs = Pairs.of((nothing, part["train"]), (nothing, part["validation"]))
    attacker.fit(pairs, Context(seed=derive_seed(seed, "blind")))
    return ssim_of(
        attacker.reconstruct, np.zeros((len(part["test"]), 1, 1, 1), np.float16), part["test"]
    )


def _kept(path: Path) -> np.ndarray | None:
    """What the cache has, if it is what was written."""
    try:
        values = read_sealed(path)
        return None if values is None else np.asarray(values, float)
    except (ValueError, TypeError) as error:
        notice(f"the cached floor {str(path)!r} is damaged ({error}): it is made again")
        return None
