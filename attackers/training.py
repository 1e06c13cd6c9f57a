"""What a training needs besides its network: learning rates, averaged weights, number formats."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from .rows import Rows


def follow(average: nn.Module, net: nn.Module, keep: float) -> None:
    """Move averaged weights, and averaged running statistics, towards the present ones."""
    present = net.state_dict()
    with torch.no_grad():
        for name, old in average.state_dict().items():
            if old.is_floating_point():
                old.lerp_(present[name], 1 - keep)
            else:
                old.copy_(present[name])


def mean_image(targets: Rows, batch: int = 64) -> torch.Tensor:
    """The mean training image, (1, 3, R, R) in [0, 1]."""
    total = np.zeros(targets.shape[1:])
    for start in range(0, len(targets), batch):
        total += targets.take(range(start, min(start + batch, len(targets)))).sum(
            0, dtype=np.float64
        )
    return torch.from_numpy(total / len(targets) / 255).float()[None]


def warm_cosine(steps: int, warm: float = 0.1, longest: int = 100) -> Callable[[int], float]:
    """Factor of the learning rate at each step: a linear rise, then a cosine down to 2 %."""
    rise = max(1, min(longest, int(steps * warm)))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor


def half_precision(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware; elsewhere it would only cost accuracy."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not device.startswith("cpu"):
        return False
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in known)
