"""A residual convolutional decoder, beside the linear attacker's picture."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..errors import AttackError, UsageError
from ..hashing import derive_seed
from ..images.load import at_resolution
from .base import (
    Attacker,
    Context,
    Range,
    Reconstruct,
    Tunable,
    as_features,
    as_images,
    checked,
)
from .batching import batches, portions
from .decoder_net import InverseNet, Layout, own_side
from .fast_ssim import fast_ssim
from .inversion import feature_distance, resized
from .linear import Linear
from .pairs import Pairs
from .rows import Rows
from .scales import scaled
from .scoring import ssim_of
from .training import follow, half_precision, mean_image, warm_cosine

LOSSES = ("ssim+l1", "perceptual")
STARTS = ("auto", "linear", "mean")
NEARLY = 0.7  # validation SSIM from which on the linear picture is worth starting from
SHARES = (1.0, 0.9, 0.75, 0.5, 0.25, 0.0)  # of the network in the answer, the rest is linear's


@dataclass(repr=False)
class Decoder(Attacker):
    """Inverse network (Dosovitskiy and Brox, 2016) with sub-pixel upsampling (Shi et al., 2016).

    Residual blocks on the map's own grid, then steps of nearest upsampling and convolution up to
    half of the picture, then sub-pixels (`decoder_net`). Coarse maps are inverted at a half of the
    picture's side (`decoder_net.own_side`), and that is scaled up. The network adds a change, zero
    at first, to the picture it starts from: the linear attacker's, which it then sees too, or the
    mean training image. Trained with AdamW and a cosine schedule; what answers is an average over
    the weights of past steps (EMA), and of those averages the one with the best validation SSIM.
    Training ends early when that has not improved for `patience` epochs. At the end validation
    images say how much of the linear picture is mixed in, so that the attack is never weaker than
    that on them. Of several losses each trains a network of its own, and the one that rebuilds
    validation images best is the attack. Channels are put in an order of their own (by kurtosis),
    so that the result does not depend on the network's.

    Losses: ``ssim+l1`` is 1 - SSIM + `l1` times L1. ``perceptual`` adds `feature_weight` times the
    distance between the features of the rebuilt image and those that were seen, a perceptual loss
    (Johnson, Alahi and Fei-Fei, 2016) whose network is the public head itself.

    Convolutions run in bfloat16 while training where the device has it in hardware, else, and
    always when answering, in float32.

    Args:
        epochs: Passes over the training images, their mirror images and crops, at most.
        width: Channels at the map's resolution, fewer on fine maps and at each step up.
        blocks: Residual blocks at the map's resolution.
        crops: Random crops of each training image to learn from, besides it and its mirror image;
            none where maps are large.
        narrowest: Fewest channels.
        batch: Images a step.
        lr: Largest learning rate.
        l1: Weight of L1 beside 1 - SSIM.
        decay: Weight decay.
        average: Share of the averaged weights that is kept at each step, less in the first ones.
        start: Picture that the network changes: ``linear``, ``mean``, or ``auto``, the first where
            its validation SSIM is at least `NEARLY`. Linear pictures of training images are better
            than those of others, and a network that starts from them relies on what it will miss.
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
        "width": (96, 128, 192, 256),
        "blocks": (1, 2, 3),
        "batch": (4, 8, 16),
    }

    epochs: int = 5
    width: int = 192
    blocks: int = 3
    crops: int = 2
    narrowest: int = 48
    batch: int = 16
    lr: float = 1.5e-3
    l1: float = 0.3
    decay: float = 0.02
    average: float = 0.998
    start: str = "auto"
    patience: int = 5
    losses: tuple[str, ...] = ("ssim+l1",)
    feature_weight: float = 0.1
    linear: Linear = field(default_factory=Linear)
    history: list[float] = field(default_factory=list, init=False)
    loss: str = field(default="", init=False)  # the one that was kept
    share: float = field(default=1.0, init=False)  # of the network in the answer
    started: str = field(default="", init=False)  # from which picture
    _net: InverseNet | None = field(default=None, init=False)
    _mean: torch.Tensor = field(default_factory=lambda: torch.empty(0), init=False)
    _order: torch.Tensor = field(default_factory=lambda: torch.empty(0), init=False)
    _device: str = field(default="cpu", init=False)

    def fit(self, pairs: Pairs, context: Context) -> None:
        """Train; the pairs may hold mirrored images beside the plain ones."""
        self._check(context)
        rows = pairs.features
        self._device = context.device
        self.linear = copy.copy(self.linear)
        self.linear.fit(pairs, Context(seed=context.seed))
        self._order, self._mean = canonical_order(rows), mean_image(pairs.images)
        side = own_side(pairs.resolution, (rows.shape[2], rows.shape[3]))
        pictures = at_resolution(pairs.held_out_images, side)
        data = _Data(rows, pairs.images, pairs.held_out, pictures, side)
        floor = self._value(data, self.linear.reconstruct)
        self.started = self.start
        if self.start == "auto":
            self.started = "linear" if floor >= NEARLY else "mean"
        best, chosen, history = -math.inf, None, []
        for loss in self.losses:
            self._net, self.share = self._fresh(data, context.seed), 1.0
            self._train(self._net, loss, data, floor, context)
            if max(self.history) > best:
                best, chosen, history, self.loss = max(self.history), self._net, self.history, loss
            if context.stopped_early:
                break  # the leak is proven
        self._net, self.history = chosen, history
        self.share = self._best_share(pairs)

    def _check(self, context: Context) -> None:
        for name, got, known in (("losses", self.losses, LOSSES), ("start", (self.start,), STARTS)):
            unknown = set(got) - set(known) or (not got and {"none"})
            if unknown:
                raise UsageError(
                    f"`{name}` got {', '.join(unknown)}; use some of {', '.join(known)}"
                )
        if self.needs_head and context.head is None:
            raise AttackError("decoder with loss 'perceptual' needs the public head")

    def _fresh(self, data: _Data, seed: int) -> InverseNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "init"))
            net = InverseNet(self._layout(data), sees_first=self.started == "linear")
        return net.to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def _layout(self, data: _Data) -> Layout:
        channels, rows, columns = data.rows.shape[1:]
        return Layout(
            channels=channels,
            cells=(rows, columns),
            side=data.side,
            width=self.width,
            blocks=self.blocks,
            narrowest=self.narrowest,
        )

    def _train(
        self, net: InverseNet, loss: str, data: _Data, floor: float, context: Context
    ) -> None:
        """Train `net`; `self._net` becomes the best of its averages. `floor` is linear's value."""
        rng = np.random.default_rng(derive_seed(context.seed, "order"))
        optimiser = torch.optim.AdamW(
            net.parameters(), self.lr, weight_decay=self.decay, fused=True
        )
        steps = math.ceil(len(data.rows) / self.batch) * self.epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, warm_cosine(steps))
        average = self._net = copy.deepcopy(net).eval()
        largest = self._layout(data).largest_activation
        best, state = floor, copy.deepcopy(average.state_dict())
        self.history = [best]
        since, done, step = 0, self.losses.index(loss) * self.epochs, 0
        for epoch in range(self.epochs):
            net.train()
            for index in batches(len(data.rows), self.batch, rng):
                optimiser.zero_grad(set_to_none=True)
                for part in portions(index, largest):
                    cost = self._cost(net, loss, data, part, context) * len(part) / len(index)
                    if not bool(torch.isfinite(cost)):
                        raise AttackError(f"{self!r} diverged in epoch {epoch + 1}")
                    cost.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                step += 1
                follow(average, net, min(self.average, (1 + step) / (10 + step)))
                context.image_steps += len(index)
            value = self._value(data, self.reconstruct)
            self.history.append(value)
            context.report((done + epoch + 1) / (self.epochs * len(self.losses)))
            if value >= max(self.history):
                state = copy.deepcopy(average.state_dict())
            if value > best:
                best, since = value, 0
                if context.proven is not None and context.proven(self.reconstruct, value):
                    context.stopped_early = epoch + 1 < self.epochs
                    break
            else:
                since += 1
                if self.patience and since >= self.patience:
                    break
        average.load_state_dict(state)

    def _cost(
        self, net: InverseNet, loss: str, data: _Data, index: np.ndarray, context: Context
    ) -> torch.Tensor:
        """The loss, mean over the images at `index`."""
        features = data.rows.take(index)
        maps = as_features(features, self._device)
        image = scaled(as_images(data.targets.take(index), self._device), data.side)
        first, kind = scaled(self._first(features), data.side), torch.device(self._device).type
        with torch.autocast(kind, torch.bfloat16, enabled=half_precision(self._device)):
            out = net(maps[:, self._order], first)
        cost: torch.Tensor = 1 - fast_ssim(out, image).mean() + self.l1 * F.l1_loss(out, image)
        if loss == "perceptual":
            assert context.head is not None
            side = context.input_size or image.shape[-1]
            found = context.head(resized(out.clamp(0, 1), side))
            cost = cost + self.feature_weight * feature_distance(found, maps, "l2").mean()
        return cost

    def _first(self, features: np.ndarray) -> torch.Tensor:
        """The pictures that the network changes, (N, 3, R, R)."""
        if self.started == "mean":
            return self._mean.to(self._device).expand(len(features), -1, -1, -1)
        with torch.no_grad():
            return self.linear.predict(features).to(self._device)

    def _value(self, data: _Data, reconstruct: Reconstruct) -> float:
        """Mean SSIM on the validation images, at the side that is learned."""

        def small(features: np.ndarray) -> torch.Tensor:
            return scaled(reconstruct(features), data.side)

        return float(ssim_of(small, data.held_out, data.pictures, measure=fast_ssim).mean())

    def _best_share(self, pairs: Pairs) -> float:
        """The share of the network in the answer that rebuilds validation images best."""
        sums, pictures = np.zeros(len(SHARES)), pairs.held_out_images
        for start in range(0, len(pictures), 16):
            index = range(start, min(start + 16, len(pictures)))
            maps = pairs.held_out.take(index)
            truth = as_images(pictures[index.start : index.stop])
            own, linear = self._rebuilt(maps).clamp(0, 1), self.linear.reconstruct(maps)
            for i, share in enumerate(SHARES):
                mixed = share * own + (1 - share) * linear
                sums[i] += float(fast_ssim(mixed, truth).sum())
        return SHARES[int(sums.argmax())]

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
        """Rebuild images: the network's, and the linear attacker's where that helps."""
        if not self.share:
            return self.linear.reconstruct(features)
        own = checked(self._rebuilt(features), self)
        if self.share == 1:
            return own
        return self.share * own + (1 - self.share) * self.linear.reconstruct(features)

    def _rebuilt(self, features: np.ndarray) -> torch.Tensor:
        """The network's pictures, not clamped."""
        assert self._net is not None, "fit first"
        with torch.no_grad():
            maps = as_features(features, self._device)[:, self._order]
            rebuilt: torch.Tensor = self._net(maps, self._first(features))
            return rebuilt.cpu()


@dataclass(frozen=True)
class _Data:
    """What a network is trained and validated on."""

    rows: Rows
    targets: Rows
    held_out: Rows
    pictures: np.ndarray  # of the validation part, at `side`
    side: int  # at which a network learns, pixels


def canonical_order(rows: Rows, images: int = 32) -> torch.Tensor:
    """An order of the channels, by kurtosis, that does not depend on the network's."""
    maps = as_features(rows.take(range(min(images, len(rows))))).double()
    centred = maps - maps.mean((0, 2, 3), keepdim=True)
    return torch.argsort((centred**4).mean((0, 2, 3)), stable=True)
