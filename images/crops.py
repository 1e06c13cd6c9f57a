"""Random resized crops: pictures that an attacker who has the head can make as many of as it likes.

Scale and aspect ratio as in Inception's training (Szegedy et al., CVPR 2015), with larger crops:
what they show is to look like what the network is given.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

LEAST = 0.35  # share of the picture's area that a crop has at least
RATIO = 4 / 3  # most that a crop is stretched


def random_crops(images: np.ndarray, seed: int) -> np.ndarray:
    """One crop of each image, half of them mirrored, scaled to its size; uint8 (N, 3, H, W).

    The same images and seed give the same crops.
    """
    rng = np.random.default_rng(seed)
    out = np.empty_like(images)
    height, width = images.shape[2:]
    for i, image in enumerate(images):
        area = rng.uniform(LEAST, 1.0)
        stretch = math.exp(rng.uniform(-math.log(RATIO), math.log(RATIO)) / 2)
        rows = min(height, max(1, round(height * math.sqrt(area) * stretch)))
        columns = min(width, max(1, round(width * math.sqrt(area) / stretch)))
        top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
        part = image[:, top : top + rows, left : left + columns]
        if rng.random() < 0.5:
            part = part[..., ::-1]
        unit = torch.from_numpy(np.ascontiguousarray(part)).float()[None]
        sized = F.interpolate(
            unit, (height, width), mode="bilinear", antialias=True, align_corners=False
        )
        out[i] = sized[0].round().clamp(0, 255).byte().numpy()
    return out
