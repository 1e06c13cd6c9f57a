"""The floor: SSIM per test image of the attacker that never sees the features."""

from __future__ import annotations

import json

import numpy as np

from ..attackers.base import Context
from ..attackers.blind import Blind
from ..attackers.scoring import ssim_of
from ..cache import cache_dir, written_whole
from ..datasets import ImageSet, at_resolution
from ..hashing import derive_seed, hash_json
from ..sources import attack_source


def floor_of(images: ImageSet, resolution: int, seed: int) -> np.ndarray:
    """SSIM of the blind attacker on each test image, shape (test images,)."""
    attacker = Blind()
    key = hash_json([attack_source(), images.digest, resolution, seed, repr(attacker)])
    path = cache_dir("floors") / f"{key[:32]}.json"
    if path.is_file():
        values = np.asarray(json.loads(path.read_text()), float)
        if values.shape == (images.split.test,) and np.isfinite(values).all():
            return values
    pictures = at_resolution(images.images, resolution)
    part = {p: pictures[slice(*images.bounds(p))] for p in ("train", "validation", "test")}
    nothing = np.zeros((1, 1, 1, 1), np.float16)
    attacker.fit(
        nothing,
        part["train"],
        validation=(nothing, part["validation"]),
        context=Context(seed=derive_seed(seed, "blind")),
    )
    values = ssim_of(
        attacker.reconstruct, np.zeros((len(part["test"]), 1, 1, 1), np.float16), part["test"]
    )
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps([float(v) for v in values]))
    return values
