"""Other measures of a reconstruction beside SSIM; verdicts rest on SSIM alone."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable

import torch
from pytorch_msssim import ms_ssim

# Four halvings, each of which must leave more than the window.
SMALLEST_FOR_MS_SSIM = 161


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB per image of two batches (N, 3, R, R) in [0, 1]."""
    mse = ((a - b) ** 2).mean((1, 2, 3)).clamp_min(1e-10)
    return -10 * torch.log10(mse)


def multi_scale_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    """MS-SSIM (Wang, Simoncelli and Bovik, 2003) per image; None below 161 pixels."""
    if min(a.shape[-2:]) < SMALLEST_FOR_MS_SSIM:
        return None
    value = ms_ssim(a, b, data_range=1.0, size_average=False)
    assert isinstance(value, torch.Tensor)
    return value


def lpips_measure() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """LPIPS (Zhang et al., 2018) where the package ``lpips`` and its weights are there, else None.

    Lower is more alike; takes images in [0, 1].
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = importlib.import_module("lpips").LPIPS(net="alex", verbose=False)
    except Exception:  # not installed, or its weights cannot be downloaded
        return None

    def measure(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            value: torch.Tensor = net(a * 2 - 1, b * 2 - 1)
        return value.flatten()

    return measure
