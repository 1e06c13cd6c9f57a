"""The floor: SSIM per test image of the attacker that never sees the features."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..attackers.base import Context
from ..attackers.blind import Blind
from ..attackers.pairs import Pairs
from ..attackers.scoring import ssim_of
from ..cache import cache_dir, read_sealed, write_sealed
from ..datasets import ImageSet, at_resolution
from ..hashing import derive_seed, hash_json
from ..notices import notice
from ..sources import attack_source


def floor_of(images: ImageSet, resolution: int, seed: int) -> np.ndarray:
    """SSIM of the blind attacker on each test image, shape (test images,)."""
    attacker = Blind()
    key = hash_json([attack_source(), images.digest, resolution, seed, repr(attacker)])
    path = cache_dir("floors") / f"{key[:32]}.json"
    kept = _kept(path)
    if kept is not None and kept.shape == (images.split.test,) and np.isfinite(kept).all():
        return kept
    pictures = at_resolution(images.images, resolution)
    part = {p: pictures[slice(*images.bounds(p))] for p in ("train", "validation", "test")}
    nothing = np.zeros((1, 1, 1, 1), np.float16)
    pairs = Pairs.of((nothing, part["train"]), (nothing, part["validation"]))
    attacker.fit(pairs, Context(seed=derive_seed(seed, "blind")))
    values = ssim_of(
        attacker.reconstruct, np.zeros((len(part["test"]), 1, 1, 1), np.float16), part["test"]
    )
    write_sealed(path, [float(v) for v in values])
    return values


def _kept(path: Path) -> np.ndarray | None:
    """What the cache has, if it is what was written."""
    try:
        values = read_sealed(path)
        return None if values is None else np.asarray(values, float)
    except (ValueError, TypeError) as error:
        notice(f"the cached floor {str(path)!r} is damaged ({error}): it is made again")
        return None
