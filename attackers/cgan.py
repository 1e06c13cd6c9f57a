"""The attack of the published protocol: a conditional GAN, rebuilt from what the papers say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..errors import AttackError
from ..hashing import derive_seed
from .base import Attacker, Context, Range, Tunable, as_features, as_images, checked
from .batching import batches, portions
from .decoder import canonical_order
from .pairs import Pairs
from .rows import Rows


@dataclass(repr=False)
class CGan(Attacker):
    """Conditional GAN as in Origami (Narra et al., 2019) and Rajasekar et al. (2024).

    A reconstruction of their attack; no parity is claimed. From the papers: a generator of encoder,
    two residual blocks and a decoder up to 3 x H x W; a discriminator that brings the image down to
    the feature map's size, joins it with the projected features and goes on with convolution
    blocks; adversarial binary cross-entropy; 200 epochs on 1,000 images. What they leave open is
    ours: widths, batch, normalisation, learning rate (pix2pix's Adam 2e-4 with betas 0.5 and 0.999,
    constant for the first half and then falling to 0; Isola et al., 2017), and an L1 term, whose
    weight is 0 for the published form and 100 for pix2pix's. The last state is the attack, as
    published: nothing is chosen on validation images.

    Args:
        epochs: Passes over the training images.
        width: Channels at the feature map's resolution.
        batch: Images a step.
        lr: Learning rate of both networks.
        l1_weight: Weight of L1 beside the adversarial loss.
    """

    name: ClassVar[str] = "cgan"
    rank: ClassVar[int] = 3
    tunable: ClassVar[Tunable] = {
        "lr": Range(5e-5, 2e-3),
        "l1_weight": (0.0, 10.0, 100.0),
        "width": (32, 64, 128),
        "batch": (4, 8, 16),
    }
    # A plain adversarial loss need not copy an image even when it sees it; see partopt.testing.
    identity_ssim: ClassVar[float] = 0.5

    epochs: int = 200
    width: int = 128
    batch: int = 16
    lr: float = 2e-4
    l1_weight: float = 0.0
    _net: nn.Module | None = field(default=None, init=False)
    _order: torch.Tensor = field(default_factory=lambda: torch.empty(0), init=False)
    _device: str = field(default="cpu", init=False)

    def fit(self, pairs: Pairs, context: Context) -> None:
        """Play the game for `epochs` passes."""
        rows, targets = pairs.features, pairs.images
        self._device = context.device
        self._order = canonical_order(rows)
        resolution = targets.shape[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(context.seed, "init"))
            generator = _Generator(rows.shape[1], rows.shape[2:], resolution, self.width)
            judge = _Discriminator(rows.shape[1], rows.shape[2:], self.width)
            for part in (*generator.modules(), *judge.modules()):
                if isinstance(part, nn.Conv2d):
                    nn.init.normal_(part.weight, 0.0, 0.02)
        generator, judge = generator.to(self._device), judge.to(self._device)
        self._net = generator
        self._play(generator, judge, rows, targets, context)

    def _play(
        self, generator: nn.Module, judge: nn.Module, rows: Rows, targets: Rows, context: Context
    ) -> None:
        rng = np.random.default_rng(derive_seed(context.seed, "order"))
        adam = {"lr": self.lr, "betas": (0.5, 0.999)}
        making = torch.optim.Adam(generator.parameters(), **adam)  # type: ignore[arg-type]
        judging = torch.optim.Adam(judge.parameters(), **adam)  # type: ignore[arg-type]
        schedules = [
            torch.optim.lr_scheduler.LambdaLR(o, _constant_then_falling(self.epochs))
            for o in (making, judging)
        ]
        side = targets.shape[-1]
        cells = rows.shape[2] * rows.shape[3]
        numbers = max(max(rows.shape[1], self.width) * cells, 32 * side**2)
        for epoch in range(self.epochs):
            generator.train()
            for index in batches(len(rows), self.batch, rng):
                loss = self._round(
                    generator, judge, making, judging, rows, targets, portions(index, numbers)
                )
                if not math.isfinite(loss):
                    raise AttackError(f"{self!r} diverged in epoch {epoch + 1}")
                context.image_steps += len(index)
            for schedule in schedules:
                schedule.step()
            context.report((epoch + 1) / self.epochs)

    def _round(
        self,
        generator: nn.Module,
        judge: nn.Module,
        making: torch.optim.Optimizer,
        judging: torch.optim.Optimizer,
        rows: Rows,
        targets: Rows,
        parts: list[np.ndarray],
    ) -> float:
        """A step of the judge, then one of the generator; gradients are summed over the parts."""
        bce = F.binary_cross_entropy_with_logits
        count = sum(map(len, parts))
        whole = len(parts) == 1  # then rows are read, and the generator runs, once for both steps
        total = 0.0
        maps = image = rebuilt = torch.empty(0)
        judging.zero_grad(set_to_none=True)
        for part in parts:
            maps, image = self._pair(rows, targets, part)
            with torch.set_grad_enabled(whole):
                rebuilt = generator(maps)
            real, fake = judge(image, maps), judge(rebuilt.detach(), maps)
            cost = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
            (0.5 * cost * len(part) / count).backward()
            total += float(cost.detach())
        judging.step()
        making.zero_grad(set_to_none=True)
        for part in parts:
            if not whole:
                maps, image = self._pair(rows, targets, part)
                rebuilt = generator(maps)
            verdict = judge(rebuilt, maps)
            loss = bce(verdict, torch.ones_like(verdict))
            if self.l1_weight:
                loss = loss + self.l1_weight * F.l1_loss(rebuilt, image)
            (loss * len(part) / count).backward()
            total += float(loss.detach())
        making.step()
        return total

    def _pair(
        self, rows: Rows, targets: Rows, index: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        maps = as_features(rows.take(index), self._device)[:, self._order]
        return maps, as_images(targets.take(index), self._device) * 2 - 1

    def reconstruct(self, features: np.ndarray) -> torch.Tensor:
        """Rebuild images with the generator."""
        assert self._net is not None, "fit first"
        self._net.eval()
        with torch.no_grad():
            maps = as_features(features, self._device)[:, self._order]
            return checked((self._net(maps) + 1) / 2, self).cpu()


def _constant_then_falling(epochs: int) -> Callable[[int], float]:
    half = epochs // 2

    def factor(epoch: int) -> float:
        return 1.0 if epoch < half else max(0.0, 1 - (epoch - half) / max(1, epochs - half))

    return factor


def _block(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    # Instance norm would erase a map of one cell.
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1), nn.GroupNorm(8, outside), nn.LeakyReLU(0.2)
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_block(width, width), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change: torch.Tensor = self.inner(x)
        return x + change


class _Generator(nn.Module):
    """Maps (N, C, h, w) to images (N, 3, R, R) in [-1, 1]."""

    def __init__(self, channels: int, cells: tuple[int, ...], resolution: int, width: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.encoder = nn.Sequential(_block(channels, width), _block(width, width))
        self.middle = nn.Sequential(_Residual(width), _Residual(width))
        ups = max(0, math.ceil(math.log2(resolution / max(cells))))
        steps: list[nn.Module] = []
        for _ in range(ups):
            narrow = max(32, width // 2)
            steps += [nn.Upsample(scale_factor=2, mode="nearest"), _block(width, narrow)]
            width = narrow
        self.decoder = nn.Sequential(*steps)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        x = self.decoder(self.middle(self.encoder(maps)))
        if x.shape[-2:] != (self.resolution, self.resolution):
            x = F.interpolate(x, (self.resolution,) * 2, mode="bilinear", align_corners=False)
        return torch.tanh(self.last(x))


class _Discriminator(nn.Module):
    """Image and map to logits: the image brought to the map's size, joined, judged by patches."""

    def __init__(self, channels: int, cells: tuple[int, ...], width: int) -> None:
        super().__init__()
        half = max(16, width // 2)
        self.cells = (cells[0], cells[1])
        self.down = nn.Sequential(_block(3, half, 2), _block(half, half, 2))
        self.project = nn.Conv2d(channels, half, 1)
        self.blocks = nn.Sequential(_block(2 * half, width), _block(width, width))
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, image: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        seen = F.adaptive_avg_pool2d(self.down(image), self.cells[:2])
        joined = torch.cat([seen, self.project(maps)], 1)
        logits: torch.Tensor = self.last(self.blocks(joined))
        return logits
