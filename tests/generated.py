"""Networks put together at random from what real ones do to a tensor; none loses a value.

A stem turns 32x32 pictures into 8x8 patches of 48 channels; then come random steps: other layouts,
in-place operators on views and aliases, special tokens, merges of batch and space, optional
arguments.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import nn

SIDE, CELLS, CHANNELS = 32, 8, 48


def orthogonal(size: int) -> nn.Linear:
    layer = nn.Linear(size, size)
    nn.init.orthogonal_(layer.weight)
    return layer


class Mix(nn.Module):
    """Channels of each cell mixed without loss, then an activation that can be undone."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.mix, self.act = orthogonal(CHANNELS), act

    def forward(self, x):
        return self.act(self.mix(x))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x):
        return x + 0.3 * torch.tanh(self.mlp(self.norm(x)))


class InPlaceResidual(Residual):
    def forward(self, x):
        x += 0.3 * torch.tanh(self.mlp(self.norm(x)))
        return x


class Alias(nn.Module):
    """What is read afterwards was changed through another name."""

    def forward(self, x):
        y = x
        y += 0.2 * torch.tanh(x)
        return x * 0.9


class Chunks(nn.Module):
    """The second half of the channels is changed by the first, in place, through a view."""

    def forward(self, x):
        x = x.clone()
        a, b = x[..., : CHANNELS // 2], x[..., CHANNELS // 2 :]
        b += 0.5 * a
        return x * 1.1


class SetSlice(nn.Module):
    """Channels are shifted by assignment to slices."""

    def forward(self, x):
        out = torch.zeros_like(x)
        out[..., :8] = x[..., -8:]
        out[..., 8:] = x[..., :-8]
        return out


class SetInPlace(nn.Module):
    def forward(self, x):
        x = x.clone()
        x[..., :4] = x[..., :4] * 1.5
        return x


class Optional(nn.Module):
    """An argument that nobody gives, and a branch on it."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = orthogonal(CHANNELS)

    def forward(self, x, mask=None, scale: float = 1.0):
        x = self.mix(x) * scale
        if mask is not None:
            x = x * mask
        return x


class Shuffle(nn.Module):
    """Tokens in another order, as hierarchical transformers keep them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        order = torch.randperm(CELLS * CELLS, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("order", order)

    def forward(self, x):
        return x[:, self.order]


class Special(nn.Module):
    """Tokens that lie nowhere, before the others."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.extra = nn.Parameter(torch.randn(1, count, CHANNELS) * 0.1)

    def forward(self, x):
        return torch.cat([self.extra.expand(x.shape[0], -1, -1), x], 1)


def cells(x):
    return x.reshape(x.shape[0], CELLS, CELLS, CHANNELS)


LAYOUTS: dict[str, Callable] = {
    "tokens": lambda x: x,
    "tokens first": lambda x: x.permute(1, 0, 2).contiguous(),
    "map": cells,
    "turned map": lambda x: cells(x).transpose(1, 2),
    "mirrored map": lambda x: cells(x).flip(2),
    "batch inside": lambda x: cells(x).permute(1, 0, 2, 3),
    "rows in the batch": lambda x: x.reshape(-1, 2 * CELLS, CHANNELS),
    "windows in the batch": lambda x: (
        x.reshape(x.shape[0], 2, 4, 2, 4, CHANNELS)
        .permute(0, 1, 3, 2, 4, 5)
        .reshape(-1, 16, CHANNELS)
    ),
}
BATCH_SECOND = ("tokens first", "batch inside")


class Reshape(nn.Module):
    """Tokens (N, 64, C) to another layout with the channels last."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x):
        return LAYOUTS[self.name](x)


def pointwise(rng: random.Random) -> nn.Module:
    """A step that works on the last dimension, whatever stands before it."""
    acts = [nn.Tanh(), nn.LeakyReLU(0.2), nn.LeakyReLU(0.2, inplace=True), nn.ELU(), nn.Softsign()]
    kinds = [
        lambda: Mix(rng.choice(acts)),
        Residual,
        InPlaceResidual,
        Alias,
        Chunks,
        SetSlice,
        SetInPlace,
        Optional,
    ]
    return rng.choice(kinds)()


class Net(nn.Module):
    """A stem, random steps, a layout, more steps; the cut to attack is after `last`."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        rng = random.Random(seed)
        self.stem = nn.Conv2d(3, CHANNELS, 4, 4)
        nn.init.orthogonal_(self.stem.weight.view(CHANNELS, -1))
        self.before = nn.Sequential(*[pointwise(rng) for _ in range(rng.randrange(3))])
        self.described = rng.choice([*LAYOUTS, "shuffled", "special"])
        self.layout: nn.Module
        if self.described == "shuffled":
            self.layout = Shuffle(seed)
        elif self.described == "special":
            self.layout = Special(rng.choice([1, 2, 5]))
        else:
            self.layout = Reshape(self.described)
        self.after = nn.Sequential(*[pointwise(rng) for _ in range(rng.randrange(3))])
        self.last = Mix(nn.Tanh())
        self.fc = nn.Linear(CHANNELS, 4)

    def forward(self, image, mask=None, features: bool = False):
        x = self.stem(image).flatten(2).transpose(1, 2)
        x = self.last(self.after(self.layout(self.before(x))))
        if features:
            return x
        if mask is not None:
            x = x * mask
        if self.described in BATCH_SECOND:
            x = x.transpose(0, 1)
        return self.fc(x.reshape(image.shape[0], -1, CHANNELS).mean(1))
