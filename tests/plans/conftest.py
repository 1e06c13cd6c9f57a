from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from partopt.graph.build import LayerGraph, trace
from partopt.images.dead_leaves import dead_leaves
from partopt.plans.blocks import Block, blocks
from partopt.plans.calibration import calibrate
from partopt.plans.network import IntegerNetwork, integer_network


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Sequential(
            nn.Conv2d(width, width, 3, padding="same", bias=False), nn.BatchNorm2d(width)
        )
        self.two = nn.Conv2d(width, width, 1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.two(torch.relu(self.one(x))))


class Small(nn.Module):
    """Every kind of layer: plain, normalised, dilated, depthwise, grouped, residual, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.res = Residual(8)
        self.wide = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Hardswish())
        self.odd = nn.Conv2d(8, 12, (3, 2), padding=(0, 1), dilation=(1, 2), padding_mode="zeros")
        self.mirrored = nn.Conv2d(12, 6, 3, padding=1, padding_mode="reflect")
        self.fc = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.odd(self.wide(self.res(self.stem(x))))
        return self.fc(torch.tanh(self.mirrored(x)).mean((2, 3)))


@dataclass
class Made:
    graph: LayerGraph
    blocks: list[Block]
    network: IntegerNetwork
    images: torch.Tensor


@pytest.fixture(scope="session")
def made() -> Made:
    torch.manual_seed(5)
    model = Small()
    images = torch.from_numpy(dead_leaves(48, 32, seed=7)).float() / 255 - 0.5
    with torch.no_grad():
        model.train()(images)  # The batch norms get statistics of their own.
        model(images * 1.5)
    graph = trace(model.eval(), images[:1])
    ranges = calibrate(graph.module, images[:32].split(8))
    return Made(graph, blocks(graph), integer_network(graph.module, ranges), images)
