"""What every attacker is: something that learns to rebuild images from feature maps."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch

from ..errors import AttackError
from .pairs import Pairs

BEYOND = "the head is too far from affine for least squares: the linear picture was kept"
RISING = "validation SSIM was still rising when the budget ended"
Reconstruct = Callable[[np.ndarray], torch.Tensor]
Key = tuple[str, str, int]  # settings, pairs, seed


@dataclass(frozen=True)
class Range:
    """Settings from `low` to `high`, on a logarithmic scale."""

    low: float
    high: float


Tunable = Mapping[str, "Range | tuple[Any, ...]"]


@dataclass(frozen=True)
class Fitted:
    """An attacker that was fitted, and what that cost."""

    attacker: Attacker
    seconds: float
    image_steps: int


@dataclass
class Context:
    """What the threat model gives an attacker besides its training pairs.

    Attributes:
        seed: For everything random.
        device: Where to compute.
        head: The public head: images (N, 3, H, W) in [0, 1] at the model's input size to the
            normalised feature map (N, C, h, w). None where white-box access is not offered.
        input_size: The model's input size in pixels, for `head`; 0: that of the images.
        fitted: Attackers fitted already, by settings, pairs and seed; one that is built on another
            takes it from here instead of fitting it again.
        proven: Called by iterative attackers after each epoch with the current reconstruction
            function and its validation SSIM; True means that the leak is proven and training may
            stop. Never asked in order to give up: an attack that looks bad goes on.
        progress: Called with the share of the work done, in [0, 1].
        image_steps: Counts training images processed, for cost figures.
    """

    seed: int = 0
    device: str = "cpu"
    head: Callable[[torch.Tensor], torch.Tensor] | None = None
    proven: Callable[[Reconstruct, float], bool] | None = None
    progress: Callable[[float], None] | None = None
    image_steps: int = 0
    input_size: int = 0
    fitted: dict[Key, Fitted] = field(default_factory=dict)
    stopped_early: bool = field(default=False, init=False)
    reused: list[Fitted] = field(default_factory=list, init=False)

    def key_of(self, settings: str, pairs: Pairs) -> Key:
        """Under what a fitted attacker is kept; `settings` is its `repr` before the fit."""
        return settings, pairs.key, self.seed

    def keep(self, settings: str, pairs: Pairs, attacker: Attacker, seconds: float) -> None:
        """Offer a fitted attacker to those built on it; `settings` as in `key_of`."""
        steps, seconds = self.cost(seconds)
        self.fitted[self.key_of(settings, pairs)] = Fitted(attacker, seconds, steps)

    def cost(self, seconds: float) -> tuple[int, float]:
        """Image-steps and seconds, what was taken as fitted counted as if fitted here."""
        return (
            self.image_steps + sum(f.image_steps for f in self.reused),
            seconds + sum(f.seconds for f in self.reused),
        )

    def report(self, share: float) -> None:
        """Tell whoever watches how far the work is."""
        if self.progress is not None:
            self.progress(share)


class Attacker(ABC):
    """Rebuild images from what crosses a cut.

    Subclasses are dataclasses whose fields are all of their settings; ``repr`` shows every one and
    is part of the key under which results are stored.

    Feature maps have shape (N, C, h, w), normalised per channel with training statistics; images
    are RGB of shape (N, 3, R, R), uint8 when given and float32 in [0, 1] when rebuilt.
    """

    name: ClassVar[str]
    augments: ClassVar[bool] = False  # wants feature maps of mirrored training images too
    needs_features: ClassVar[bool] = True
    rank: ClassVar[int] = 0  # cheap attackers run first
    white_box: ClassVar[bool] = False  # wants `Context.head`
    tunable: ClassVar[Tunable] = {}  # settings that `--tune` looks for, and where
    identity_ssim: ClassVar[float] = 0.95  # what `partopt.testing` asks on an identity head

    @abstractmethod
    def fit(self, pairs: Pairs, context: Context) -> None:
        """Learn from training pairs; choose settings on validation pairs.

        Raises:
            AttackError: The attack diverged.
        """

    @abstractmethod
    def reconstruct(self, features: np.ndarray) -> torch.Tensor:
        """Rebuild images (N, 3, R, R) in [0, 1] from feature maps (N, C, h, w)."""

    def safer(self) -> Attacker | None:
        """The same attacker with settings less likely to fail, for a second try after a failure.

        By default a third of the learning rate and half the batch, where there are such settings,
        in nested attackers too; None where there is nothing to change.
        """
        changed: dict[str, Any] = {}
        for name, value in self.settings().items():
            if name == "lr":
                changed[name] = value / 3
            elif name == "batch" and value > 1:
                changed[name] = value // 2
            elif isinstance(value, Attacker) and (inner := value.safer()) is not None:
                changed[name] = inner
        return replace(self, **changed) if changed else None  # type: ignore[type-var]

    def longer(self, times: int) -> Attacker | None:
        """The same attacker with so many times the epochs, for one that was still rising.

        In nested attackers too; None where nothing is trained in epochs.
        """
        changed: dict[str, Any] = {}
        for name, value in self.settings().items():
            if name == "epochs":
                changed[name] = value * times
            elif isinstance(value, Attacker) and (inner := value.longer(times)) is not None:
                changed[name] = inner
        return replace(self, **changed) if changed else None  # type: ignore[type-var]

    @property
    def views(self) -> int:
        """Of each training image, how many random crops it wants besides; nested attackers' too."""
        settings = self.settings()
        inner = [v.views for v in settings.values() if isinstance(v, Attacker)]
        return max([int(settings.get("crops", 0)), *inner])

    @property
    def needs_head(self) -> bool:
        """Whether `fit` wants `Context.head`, as these settings stand."""
        return self.white_box

    def settings(self) -> dict[str, Any]:
        """All settings by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}  # type: ignore[arg-type]

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}={v!r}" for k, v in self.settings().items())
        return f"{type(self).__name__}({inner})"


def fit_member(member: Attacker, pairs: Pairs, context: Context) -> Attacker:
    """A fitted copy of an attacker that another is built on; from `Context.fitted` if there.

    Its own other members are looked for there too, so that the result does not hang on what ran
    before: what is taken was fitted on the same pairs from the same seed.
    """
    known = context.fitted.get(context.key_of(repr(member), pairs))
    if known is not None:
        context.reused.append(known)
        return known.attacker
    member = copy.copy(member)
    member.fit(pairs, context)
    return member


def remark(attacker: Attacker) -> str:
    """What a result must say of a trained attacker, or nothing."""
    if getattr(attacker, "still_rising", False):
        return RISING
    if getattr(attacker, "beyond", False):
        return BEYOND
    return ""


def checked(images: torch.Tensor, attacker: Attacker) -> torch.Tensor:
    """Clamp to [0, 1]; refuse what is not finite, so that divergence never reads as protection."""
    if not bool(torch.isfinite(images).all()):
        raise AttackError(f"{attacker!r} gave values that are not finite")
    return images.clamp(0.0, 1.0)


def as_features(features: np.ndarray, device: str = "cpu") -> torch.Tensor:
    """A batch of stored half-precision maps as float32 on `device`."""
    return torch.from_numpy(np.ascontiguousarray(features)).to(device).float()


def as_images(images: np.ndarray, device: str = "cpu") -> torch.Tensor:
    """A batch of uint8 images as float32 in [0, 1] on `device`."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).float().div_(255)
