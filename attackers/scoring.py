"""SSIM of reconstructions, the floor, the floor-corrected score and its bootstrap interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from pytorch_msssim import ssim as _ssim

from ..errors import AttackError
from .base import as_images
from .rows import Rows, as_rows

WINDOW, SIGMA, DATA_RANGE = 11, 1.5, 1.0
PROTOCOL = (
    f"pytorch_msssim.ssim on RGB in [0, 1], data_range {DATA_RANGE}, window {WINDOW}, "
    f"sigma {SIGMA}, reconstruction clamped, per image"
)


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SSIM (Wang et al., 2004) per image of two batches (N, 3, R, R) in [0, 1]; shape (N,)."""
    value = _ssim(a, b, data_range=DATA_RANGE, size_average=False, win_size=WINDOW, win_sigma=SIGMA)
    assert isinstance(value, torch.Tensor)
    return value


def ssim_of(
    reconstruct: Callable[[np.ndarray], torch.Tensor],
    features: Rows | np.ndarray,
    images: np.ndarray,
    batch: int = 16,
    measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = ssim,
) -> np.ndarray:
    """SSIM of each rebuilt image against the original, shape (N,), float64.

    Args:
        reconstruct: From feature maps (N, C, h, w) to images (N, 3, R, R).
        features: One row per image.
        images: uint8 originals.
        batch: Images at a time.
        measure: `ssim` for verdicts; `fast_ssim` inside attacks.

    Raises:
        AttackError: A score is not finite.
    """
    rows = as_rows(features)
    scores = []
    with torch.no_grad():
        for start in range(0, len(images), batch):
            index = range(start, min(start + batch, len(images)))
            rebuilt = reconstruct(rows.take(index)).cpu().clamp(0, 1)
            scores.append(measure(rebuilt, as_images(images[index.start : index.stop])))
    result = torch.cat(scores).double().numpy()
    if not np.isfinite(result).all():
        raise AttackError("an SSIM score is not finite; the attack counts as failed")
    return np.asarray(result)


@dataclass(frozen=True)
class Score:
    """What one attacker reached on the test images.

    Attributes:
        raw: Mean SSIM in [-1, 1].
        p95, largest: 95th percentile and maximum over the images, raw.
        value: The compared figure: floor-corrected mean clipped at 0, or the raw mean.
        low, high: Bootstrap 95 % interval of ``value``.
        scale: ``"corrected"`` or ``"raw"``.
    """

    raw: float
    p95: float
    largest: float
    value: float
    low: float
    high: float
    scale: str


def corrected(raw: float | np.ndarray, floor: float | np.ndarray) -> np.ndarray:
    """(S - S_blind) / (1 - S_blind), clipped at 0: 0 is blind, 1 is a perfect copy."""
    return np.clip((np.asarray(raw) - floor) / np.maximum(1.0 - np.asarray(floor), 1e-9), 0, None)


def score(
    per_image: np.ndarray,
    floor: np.ndarray,
    *,
    scale: str = "corrected",
    seed: int = 0,
    resamples: int = 2000,
) -> Score:
    """Summarise per-image SSIM against the floor's per-image SSIM on the same images.

    The interval is a percentile bootstrap over images; image and floor are resampled together.

    Args:
        per_image: Shape (N,).
        floor: SSIM of the blind attacker on the same images, shape (N,).
        scale: ``"corrected"`` or ``"raw"``.
        seed: For the resampling.
        resamples: How many.
    """
    if per_image.shape != floor.shape or not len(per_image):
        raise AttackError(
            f"scores of {per_image.shape} images cannot be held against a floor of {floor.shape}"
        )
    index = np.random.default_rng(seed).integers(0, len(per_image), (resamples, len(per_image)))
    means = per_image[index].mean(1)
    if scale == "raw":
        value, spread = float(per_image.mean()), means
    else:
        value = float(corrected(per_image.mean(), floor.mean()))
        spread = corrected(means, floor[index].mean(1))
    low, high = np.quantile(spread, [0.025, 0.975])
    return Score(
        raw=float(per_image.mean()),
        p95=float(np.quantile(per_image, 0.95)),
        largest=float(per_image.max()),
        value=value,
        low=float(low),
        high=float(high),
        scale=scale,
    )
