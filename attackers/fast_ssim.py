"""SSIM by matrix products: the same value as the library's, several times faster on a CPU.

Used inside attacks (losses, choice of settings on validation images). Verdicts are always scored
with ``pytorch_msssim`` (`scoring.py`); a test holds the two against each other.
"""

from __future__ import annotations

from functools import lru_cache

import torch

WINDOW, SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


@lru_cache(maxsize=16)
def _band(size: int, device: str) -> torch.Tensor:
    """The valid Gaussian filter along one axis as a (size - WINDOW + 1, size) matrix."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    kernel = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    kernel /= kernel.sum()
    matrix = torch.zeros(size - WINDOW + 1, size, dtype=torch.float64)
    for i in range(len(matrix)):
        matrix[i, i : i + WINDOW] = kernel
    return matrix.float().to(device)


def fast_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean SSIM per image of two batches (N, C, H, W) in [0, 1]; shape (N,), differentiable."""
    rows, columns = _band(a.shape[-2], str(a.device)), _band(a.shape[-1], str(a.device)).T
    maps = torch.stack([a, b, a * a, b * b, a * b])
    mean_a, mean_b, aa, bb, ab = torch.matmul(rows, torch.matmul(maps, columns)).unbind(0)
    square_a, square_b, product = mean_a * mean_a, mean_b * mean_b, mean_a * mean_b
    structure = (2 * (ab - product) + _C2) / (aa - square_a + bb - square_b + _C2)
    luminance = (2 * product + _C1) / (square_a + square_b + _C1)
    return (structure * luminance).mean((1, 2, 3))
