"""A network of one's own: a function that takes nothing and returns it.

cd examples/custom_model
partopt find --model network:make --weights none --input-size 64 --mean 0.5 --std 0.5
"""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """Two convolutions around which the input is carried, at half the side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.short = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, inputs, h, w) to maps (N, outputs, h / 2, w / 2)."""
        return torch.relu(self.path(x) + self.short(x))


class Network(nn.Module):
    """Five halvings, then ten classes from the average of what is left."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 24, 32, 48, 64)
        self.blocks = nn.Sequential(*map(Block, widths, widths[1:]))
        self.classes = nn.Linear(widths[-1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, 64, 64) to logits (N, 10)."""
        return self.classes(self.blocks(x).mean((2, 3)))


def make() -> nn.Module:
    """Give the network that partopt looks into; its weights come from `--weights`."""
    torch.manual_seed(0)  # the same values at each call, where no file gives them
    return Network()
