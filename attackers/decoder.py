"""A residual convolutional decoder that starts from the linear attacker's picture."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..errors import AttackError, UsageError
from ..hashing import derive_seed
from .base import Attacker, Context, Range, Tunable, as_features, as_images, checked
from .batching import batches, portions
from .fast_ssim import fast_ssim
from .inversion import feature_distance, resized
from .linear import Linear
from .pairs import Pairs
from .rows import Rows
from .scoring import ssim_of

LOSSES = ("ssim+l1", "perceptual")


@dataclass(repr=False)
class Decoder(Attacker):
    """Inverse network (Dosovitskiy and Brox, 2016) with sub-pixel upsampling (Shi et al., 2016).

    Residual blocks at the map's resolution, then steps of convolution and pixel shuffle up to the
    image, then a small refiner that sees the linear attacker's picture and adds a correction to it.
    The correction starts at zero, so the attack starts where the closed form ends. Trained with
    AdamW and a cosine schedule; the state with the best validation SSIM is kept, and training ends
    early when that has not improved for `patience` epochs. Of several losses each trains a network
    of its own, and the one that rebuilds validation images best is the attack. Channels are put in
    an order of their own (by kurtosis), so that the result does not depend on the network's.

    Losses: ``ssim+l1`` is 1 - SSIM + `l1` times L1. ``perceptual`` adds `feature_weight` times the
    distance between the features of the rebuilt image and those that were seen, a perceptual loss
    (Johnson, Alahi and Fei-Fei, 2016) whose network is the public head itself.

    Args:
        epochs: Passes over the training images and their mirror images, at most.
        width: Channels at the map's resolution; halved at each step up, at least `narrowest`.
        blocks: Residual blocks at the map's resolution.
        narrowest: Fewest channels.
        batch: Images a step.
        lr: Largest learning rate.
        l1: Weight of L1 beside 1 - SSIM.
        patience: Epochs without improvement before stopping; 0 never stops.
        losses: Which losses to train on, each its own network.
        feature_weight: Weight of the feature distance in ``perceptual``.
        linear: Settings of the linear attacker underneath.
    """

    name: ClassVar[str] = "decoder"
    augments: ClassVar[bool] = True
    rank: ClassVar[int] = 2
    tunable: ClassVar[Tunable] = {
        "lr": Range(3e-4, 1e-2),
        "l1": Range(0.05, 3.0),
        "width": (48, 64, 96, 128),
        "blocks": (1, 2, 3),
        "batch": (4, 8, 16),
    }

    epochs: int = 30
    width: int = 96
    blocks: int = 2
    narrowest: int = 24
    batch: int = 16
    lr: float = 2e-3
    l1: float = 1.0
    patience: int = 8
    losses: tuple[str, ...] = ("ssim+l1",)
    feature_weight: float = 0.1
    linear: Linear = field(default_factory=Linear)
    history: list[float] = field(default_factory=list, init=False)
    loss: str = field(default="", init=False)  # the one that was kept
    _net: nn.Module | None = field(default=None, init=False)
    _order: torch.Tensor = field(default_factory=lambda: torch.empty(0), init=False)
    _device: str = field(default="cpu", init=False)

    def fit(self, pairs: Pairs, context: Context) -> None:
        """Train; the pairs may hold mirrored images beside the plain ones."""
        unknown = set(self.losses) - set(LOSSES) or (not self.losses and {"none"})
        if unknown:
            raise UsageError(f"`losses` got {', '.join(unknown)}; use some of {', '.join(LOSSES)}")
        if self.needs_head and context.head is None:
            raise AttackError("decoder with loss 'perceptual' needs the public head")
        rows = pairs.features
        self._device = context.device
        self.linear = copy.copy(self.linear)
        self.linear.fit(pairs, Context(seed=context.seed))
        self._order = canonical_order(rows)
        data = _Data(
            rows, pairs.images, _bases(self.linear, rows), pairs.held_out, pairs.held_out_images
        )
        best, chosen, history = -math.inf, None, []
        for loss in self.losses:
            self._net = self._fresh(data, context.seed)
            self._train(self._net, loss, data, context)
            if max(self.history) > best:
                best, chosen, history, self.loss = max(self.history), self._net, self.history, loss
            if context.stopped_early:
                break  # the leak is proven
        self._net, self.history = chosen, history

    def _fresh(self, data: _Data, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "init"))
            net = _Net(data.rows.shape[1], data.rows.shape[2:], data.targets.shape[-1], self)
        return net.to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def _train(self, net: nn.Module, loss: str, data: _Data, context: Context) -> None:
        rng = np.random.default_rng(derive_seed(context.seed, "order"))
        optimiser = torch.optim.AdamW(net.parameters(), self.lr, weight_decay=1e-4)
        steps = math.ceil(len(data.rows) / self.batch) * self.epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _warm_cosine(steps))
        best = self._validate(data)
        state = copy.deepcopy(net.state_dict())
        self.history = [best]
        since, done = 0, self.losses.index(loss) * self.epochs
        for epoch in range(self.epochs):
            net.train()
            for index in batches(len(data.rows), self.batch, rng):
                optimiser.zero_grad(set_to_none=True)
                for part in portions(index, self._largest_activation(data)):
                    cost = self._cost(net, loss, data, part, context) * len(part) / len(index)
                    if not bool(torch.isfinite(cost)):
                        raise AttackError(f"{self!r} diverged in epoch {epoch + 1}")
                    cost.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                context.image_steps += len(index)
            value = self._validate(data)
            self.history.append(value)
            context.report((done + epoch + 1) / (self.epochs * len(self.losses)))
            if value > best:
                best, state, since = value, copy.deepcopy(net.state_dict()), 0
                if context.proven is not None and context.proven(self.reconstruct, value):
                    context.stopped_early = epoch + 1 < self.epochs
                    break
            else:
                since += 1
                if self.patience and since >= self.patience:
                    break
        net.load_state_dict(state)

    def _cost(
        self, net: nn.Module, loss: str, data: _Data, index: np.ndarray, context: Context
    ) -> torch.Tensor:
        """The loss, mean over the images at `index`."""
        maps = as_features(data.rows.take(index), self._device)
        image = as_images(data.targets.take(index), self._device)
        base = torch.from_numpy(data.bases[index]).to(self._device).float()
        out = net(maps[:, self._order], base)
        cost: torch.Tensor = 1 - fast_ssim(out, image).mean() + self.l1 * F.l1_loss(out, image)
        if loss == "perceptual":
            assert context.head is not None
            side = context.input_size or image.shape[-1]
            found = context.head(resized(out.clamp(0, 1), side))
            cost = cost + self.feature_weight * feature_distance(found, maps, "l2").mean()
        return cost

    def _largest_activation(self, data: _Data) -> int:
        cells = min(data.targets.shape[-1], max(data.rows.shape[2:])) ** 2
        refined = self.narrowest * (data.targets.shape[-1] // 2) ** 2
        return max(math.prod(data.rows.shape[1:]), self.width * cells, refined)

    def _validate(self, data: _Data) -> float:
        values = ssim_of(self.reconstruct, data.held_out, data.pictures, measure=fast_ssim)
        return float(values.mean())

    @property
    def needs_head(self) -> bool:
        """Whether a loss wants the public head."""
        return "perceptual" in self.losses

    @property
    def still_rising(self) -> bool:
        """Whether validation SSIM was best in the last epoch that ran, by more than 0.002."""
        h = self.history
        return len(h) > 2 and h[-1] == max(h) and h[-1] - h[-2] > 0.002

    def reconstruct(self, features: np.ndarray) -> torch.Tensor:
        """Rebuild images; the linear picture plus the learned correction."""
        assert self._net is not None, "fit first"
        self._net.eval()
        with torch.no_grad():
            base = self.linear.predict(features).half().float().to(self._device)
            maps = as_features(features, self._device)[:, self._order]
            return checked(self._net(maps, base), self).cpu()


@dataclass(frozen=True)
class _Data:
    """What a network is trained and validated on."""

    rows: Rows
    targets: Rows
    bases: np.ndarray
    held_out: Rows
    pictures: np.ndarray


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, width, 3, padding=1)
        self.b = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change: torch.Tensor = self.b(F.gelu(self.a(F.gelu(x))))
        return x + change


class _Net(nn.Module):
    """Map (N, C, h, w) and base picture (N, 3, R, R) to a picture (N, 3, R, R)."""

    def __init__(
        self, channels: int, cells: tuple[int, ...], resolution: int, settings: Decoder
    ) -> None:
        super().__init__()
        # Full resolution is expensive and the base picture has the detail already: the learned
        # path ends at half of it where the map itself is not finer.
        ups = max(0, round(math.log2(resolution / max(cells))))
        self.grid = (math.ceil(resolution / 2**ups),) * 2
        if min(cells) == 1:
            self.grid = (4, 4)
            ups = max(0, round(math.log2(resolution / 4)))
        width = settings.width
        self.spread = nn.Linear(channels, width * 16) if min(cells) == 1 else None
        self.stem = nn.Conv2d(width if self.spread else channels, width, 3, padding=1)
        self.body = nn.Sequential(*(_Block(width) for _ in range(settings.blocks)))
        steps: list[nn.Module] = []
        for _ in range(max(0, ups - 1)):
            narrow = max(settings.narrowest, width // 2)
            steps += [nn.Conv2d(width, 4 * narrow, 3, padding=1), nn.PixelShuffle(2), nn.GELU()]
            width = narrow
        self.up = nn.Sequential(*steps)
        self.shuffle = 2 if ups else 1
        inner = 3 * self.shuffle**2
        self.join = nn.Conv2d(width + inner, settings.narrowest, 3, padding=1)
        self.refine = _Block(settings.narrowest)
        self.last = nn.Conv2d(settings.narrowest, inner, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, maps: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        if self.spread is not None:
            x = self.spread(maps.mean((2, 3))).view(len(maps), -1, 4, 4)
        elif maps.shape[2:] != self.grid:
            finer = maps.shape[2] > self.grid[0]
            x = F.interpolate(
                maps, self.grid, mode="bilinear", antialias=finer, align_corners=False
            )
        else:
            x = maps
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.up(F.gelu(self.body(self.stem(x))))
        odd = base.shape[2] % self.shuffle or base.shape[3] % self.shuffle
        picture = F.pad(base, (0, odd, 0, odd), mode="replicate") if odd else base
        picture = F.pixel_unshuffle(picture, self.shuffle)
        if x.shape[2:] != picture.shape[2:]:
            x = F.interpolate(x, picture.shape[2:], mode="bilinear", align_corners=False)
        x = self.refine(self.join(torch.cat([x, picture - 0.5], 1)))
        change = F.pixel_shuffle(self.last(F.gelu(x)), self.shuffle)
        rebuilt: torch.Tensor = base + change[..., : base.shape[2], : base.shape[3]]
        return rebuilt


def _warm_cosine(steps: int, warm: float = 0.1) -> Callable[[int], float]:
    rise = max(1, int(steps * warm))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor


def _bases(linear: Linear, rows: Rows, batch: int = 16) -> np.ndarray:
    """The linear attacker's pictures of all rows, half precision, computed once."""
    out = []
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            part = rows.take(range(start, min(start + batch, len(rows))))
            out.append(linear.predict(part).half().numpy())
    return np.concatenate(out)


def canonical_order(rows: Rows, images: int = 32) -> torch.Tensor:
    """An order of the channels, by kurtosis, that does not depend on the network's."""
    maps = as_features(rows.take(range(min(images, len(rows))))).double()
    centred = maps - maps.mean((0, 2, 3), keepdim=True)
    return torch.argsort((centred**4).mean((0, 2, 3)), stable=True)
