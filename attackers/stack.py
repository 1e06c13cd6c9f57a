"""The weighted average of several attackers' pictures: errors that they do not share cancel."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from ..errors import AttackError, UsageError
from ..hashing import derive_seed
from .base import Attacker, Context, Fitted, as_images, checked, fit_member
from .decoder import Decoder
from .fast_ssim import fast_ssim
from .hybrid import Hybrid
from .linear import Linear
from .newton import Newton
from .pairs import Pairs
from .rows import Rows

MOST = 8  # members: so few weights cannot learn a validation set by heart
RISING_ON = 32  # images of the ascent; candidates are compared on all
SLIGHT = 0.02  # weights below may be left out, and their member need not run


@dataclass(repr=False)
class Stack(Attacker):
    """Linear, decoders of several seeds and, where they are given, others; averaged.

    Every picture is the same weighted mean of all members' pictures. Weights are not negative, sum
    to one, and are fitted on validation images alone: least squares on the pixels, then gradient
    ascent on SSIM. Each member alone and the plain average are among the candidates, so on those
    images the stack is at least as good as its best member. Members that get no weight do not run.

    Where a member's training ends because the leak is proven, that member is the answer: it is its
    pictures that prove it.

    Args:
        linear: Settings of the linear attacker.
        decoder: Settings of the decoder.
        second: Of another decoder, with another loss for one; None leaves it out.
        newton: White-box least squares, which needs the head; None leaves it out.
        hybrid: White-box refinement, which needs the head; None leaves it out.
        seeds: Each trains the decoders once; 0 is the run's own seed, which others share.
        steps: Of the ascent on SSIM.
        lr: Its learning rate.
        tuning_images: Validation images that weights are fitted on, at most.
    """

    name: ClassVar[str] = "stack"
    augments: ClassVar[bool] = True
    rank: ClassVar[int] = 5

    linear: Linear = field(default_factory=Linear)
    decoder: Decoder = field(default_factory=Decoder)
    second: Decoder | None = None
    newton: Newton | None = None
    hybrid: Hybrid | None = None
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 30
    lr: float = 0.1
    tuning_images: int = 96
    weights: dict[str, float] = field(default_factory=dict, init=False)
    _fitted: dict[str, Attacker] = field(default_factory=dict, init=False)

    @property
    def needs_head(self) -> bool:
        """Whether any member wants the public head."""
        return any(member.needs_head for member, _ in self._members().values())

    @property
    def still_rising(self) -> bool:
        """Whether any member was still getting better when its budget ended."""
        return any(getattr(m, "still_rising", False) for m in self._fitted.values())

    def fit(self, pairs: Pairs, context: Context) -> None:
        """Fit every member, then the weights on validation images."""
        if self.needs_head and context.head is None:
            raise AttackError(f"{self.name} with white-box members needs the public head")
        self._fitted, self.weights = {}, {}
        before, context.fitted = context.fitted, dict(context.fitted)
        try:
            for label, (member, seed) in self._members().items():
                self._fitted[label] = _fit(member, seed, pairs, context)
                if context.stopped_early:
                    self.weights = {label: 1.0}
                    return
        finally:
            context.fitted = before
        held_out, pictures = pairs.held_out, pairs.held_out_images
        # Over the whole part: images of one folder or class may stand together.
        few = min(self.tuning_images, len(pictures))
        chosen = np.unique(np.linspace(0, len(pictures) - 1, few).round().astype(int))
        rebuilt = self._rebuilt(held_out, chosen)
        found = fit_weights(rebuilt, as_images(pictures[chosen]), self.steps, self.lr)
        self.weights = {
            label: w for label, w in zip(self._fitted, found.tolist(), strict=True) if w > 0
        }

    def _members(self) -> dict[str, tuple[Attacker, int]]:
        """Attackers to fit by label, each with its seed."""
        if len(set(self.seeds)) < len(self.seeds) or not self.seeds or min(self.seeds) < 0:
            raise UsageError(f"`seeds` got {self.seeds}; use one or more different ones from 0 on")
        found: dict[str, tuple[Attacker, int]] = {"linear": (self.linear, 0)}
        for name, decoder in (("decoder", self.decoder), ("second", self.second)):
            if decoder is not None:
                found.update({f"{name} {s}": (decoder, s) for s in self.seeds})
        if self.newton is not None:
            found["newton"] = (self.newton, 0)
        if self.hybrid is not None:
            found["hybrid"] = (self.hybrid, 0)
        if len(found) > MOST:
            raise UsageError(
                f"`seeds` got {self.seeds}, which makes {len(found)} members; use at most {MOST}"
            )
        return found

    def _rebuilt(self, rows: Rows, index: np.ndarray, batch: int = 16) -> torch.Tensor:
        """Every member's pictures of the given rows, (M, n, 3, R, R), half precision."""
        members = []
        with torch.no_grad():
            for member in self._fitted.values():
                parts = [
                    checked(member.reconstruct(rows.take(index[i : i + batch])), member).cpu()
                    for i in range(0, len(index), batch)
                ]
                members.append(torch.cat(parts).half())
        return torch.stack(members)

    def reconstruct(self, features: np.ndarray) -> torch.Tensor:
        """The weighted mean of the members' pictures."""
        if not self.weights:
            raise AttackError(f"{self.name} was not fitted")
        total: torch.Tensor | None = None
        for label, weight in self.weights.items():
            part = weight * self._fitted[label].reconstruct(features).cpu()
            total = part if total is None else total + part
        assert total is not None
        return checked(total, self)


def _fit(member: Attacker, seed: int, pairs: Pairs, context: Context) -> Attacker:
    """A fitted copy; with the run's own seed (0) it is taken from, and left in, `context`."""
    if seed == 0:
        fitted = fit_member(member, pairs, context)
        # Later members built on it cost nothing more.
        context.fitted[context.key_of(repr(member), pairs)] = Fitted(fitted, 0.0, 0)
        return fitted
    other = copy.copy(context)
    other.seed = derive_seed(context.seed, "stack", seed)
    other.fitted, other.image_steps = {}, 0
    member = copy.copy(member)
    member.fit(pairs, other)
    context.image_steps += other.image_steps
    context.stopped_early = other.stopped_early
    return member


def fit_weights(rebuilt: torch.Tensor, images: torch.Tensor, steps: int, lr: float) -> torch.Tensor:
    """Weights, (M,), not negative, of sum 1, of the mean with the largest SSIM.

    Candidates are each member alone, the plain mean, least squares on pixels, what gradient ascent
    on SSIM makes of that, and that without members of slight weight.

    Args:
        rebuilt: Pictures of M members, (M, n, 3, R, R).
        images: What they ought to be, (n, 3, R, R) in [0, 1].
        steps: Of the ascent, each over some 32 of the images.
        lr: Learning rate of Adam on the logits.
    """
    count = len(rebuilt)
    even = torch.full((count,), 1 / count)
    candidates: list[torch.Tensor] = [*torch.eye(count), even]
    if count > 1:
        pixels = _least_squares(rebuilt, images)
        start = max((even, pixels), key=lambda w: mean_ssim(rebuilt, images, w))
        some = slice(None, None, -(-len(images) // RISING_ON))
        risen = _ascend(rebuilt[:, some], images[some], start, steps, lr)
        kept = torch.where(risen >= SLIGHT, risen, torch.zeros(()))
        candidates += [pixels, risen, kept / kept.sum()]
    # Of equals the last: slight members left out.
    best = max(reversed(candidates), key=lambda w: mean_ssim(rebuilt, images, w))
    return best


def mean_ssim(rebuilt: torch.Tensor, images: torch.Tensor, weights: torch.Tensor) -> float:
    """Mean SSIM of the weighted mean of pictures."""
    with torch.no_grad():
        parts = [
            fast_ssim(_mixed(rebuilt[:, i : i + _BATCH], weights), images[i : i + _BATCH])
            for i in range(0, len(images), _BATCH)
        ]
    return float(torch.cat(parts).mean())


_BATCH = 16


def _mixed(rebuilt: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch.einsum("m,mnchw->nchw", weights, rebuilt.float())


def _least_squares(rebuilt: torch.Tensor, images: torch.Tensor, steps: int = 500) -> torch.Tensor:
    """Weights on the simplex with the smallest squared error, by projected gradient descent."""
    count = len(rebuilt)
    gram = torch.zeros(count, count, dtype=torch.float64)
    target = torch.zeros(count, dtype=torch.float64)
    for i in range(0, len(images), _BATCH):
        # As departures from the first member: pictures have most in common.
        part = rebuilt[:, i : i + _BATCH].flatten(1).double()
        truth = images[i : i + _BATCH].flatten().double() - part[0]
        part = part - part[:1]
        gram += part @ part.T
        target += part @ truth
    weights = torch.full((count,), 1 / count, dtype=torch.float64)
    rate = 1 / max(float(torch.linalg.matrix_norm(gram, 2)), 1e-30)
    for _ in range(steps):
        weights = _on_simplex(weights - rate * (gram @ weights - target))
    return weights.float()


def _on_simplex(point: torch.Tensor) -> torch.Tensor:
    """The nearest weights that are not negative and sum to one (Duchi et al., 2008)."""
    ordered = point.sort(descending=True).values
    above = (ordered.cumsum(0) - 1) / torch.arange(1, len(point) + 1)
    last = int((ordered > above).nonzero().max())
    weights: torch.Tensor = (point - above[last]).clamp_min(0)
    return weights


def _ascend(
    rebuilt: torch.Tensor, images: torch.Tensor, start: torch.Tensor, steps: int, lr: float
) -> torch.Tensor:
    """Adam on 1 - SSIM, by logits of the weights; the best weights seen on the way."""
    logits = start.clamp_min(1e-3).log().requires_grad_(True)
    optimiser = torch.optim.Adam([logits], lr)
    best, found = -1.0, start
    for _ in range(steps):
        optimiser.zero_grad()
        value = 0.0
        for i in range(0, len(images), _BATCH):
            truth = images[i : i + _BATCH]
            mixed = _mixed(rebuilt[:, i : i + _BATCH], logits.softmax(0))
            gain = fast_ssim(mixed, truth).sum() / len(images)
            (-gain).backward()
            value += float(gain.detach())
        if value > best:
            best, found = value, logits.detach().softmax(0)
        optimiser.step()
    return found
