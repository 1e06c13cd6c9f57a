"""A conformance suite for attackers, ours and other packages'.

    from partopt.testing import conformance
    conformance(lambda: MyAttacker(epochs=4))

raises `AssertionError` at the first thing that an attacker must do and this one does not. Checks
run on 160 generated images of 48x48, with heads whose answer is known; with pytest, call them one
by one. The 32 images that an attack is scored on reach an attacker as feature maps alone.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from .attackers.base import Attacker, Context
from .attackers.blind import Blind
from .attackers.pairs import Pairs
from .attackers.scoring import corrected, ssim_of
from .images.dead_leaves import dead_leaves

Head = Callable[[torch.Tensor], torch.Tensor]
Make = Callable[[], Attacker]
SIDE, TRAIN, VALIDATION, TEST = 48, 96, 32, 32


@dataclass(frozen=True)
class Arena:
    """Images, a head, and its normalised features of them."""

    images: np.ndarray
    features: np.ndarray
    head: Head


def arena(head: Head) -> Arena:
    """Normalise `head` (images (N, 3, 48, 48) in [0, 1] to maps) as the feature store does."""
    images = _images()
    with torch.no_grad():
        maps = head(torch.from_numpy(images).float() / 255)
    seen = maps[:TRAIN].double()
    mean, std = seen.mean((0, 2, 3), keepdim=True), seen.std((0, 2, 3), keepdim=True)
    scale = torch.where(std > 1e-6, 1 / std.clamp_min(1e-300), 0.0)

    def normal(unit: torch.Tensor) -> torch.Tensor:
        return (head(unit) - mean.float()) * scale.float()

    features = ((maps - mean) * scale).half().numpy()
    return Arena(images, features, normal)


@lru_cache(maxsize=1)
def _images() -> np.ndarray:
    return dead_leaves(TRAIN + VALIDATION + TEST, SIDE, seed=3)


def attack(make: Make, where: Arena, seed: int = 0) -> float:
    """Fit, and return the mean SSIM on the test images."""
    attacker = make()
    context = Context(seed, input_size=SIDE)
    if attacker.needs_head:
        context.head = where.head
    attacker.fit(pairs_of(where), context)
    test = slice(TRAIN + VALIDATION, None)
    return float(ssim_of(attacker.reconstruct, where.features[test], where.images[test]).mean())


def pairs_of(where: Arena) -> Pairs:
    """What an attacker may learn from."""
    f, i = where.features, where.images
    held = slice(TRAIN, TRAIN + VALIDATION)
    return Pairs.of((f[:TRAIN], i[:TRAIN]), (f[held], i[held]))


def identity(unit: torch.Tensor) -> torch.Tensor:
    """A head that hides nothing."""
    return unit


def constant(unit: torch.Tensor) -> torch.Tensor:
    """A head that tells nothing."""
    return unit.new_full((len(unit), 6, 12, 12), 0.1)


def convolutions(shuffled: bool = False) -> Head:
    """Two random convolutions, 3 to 24 channels at a quarter of the side; or shuffled channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 12, 5, 2, 2), torch.nn.ReLU(), torch.nn.Conv2d(12, 24, 3, 2, 1)
        ).requires_grad_(False)
        order = torch.randperm(24)

    def head(unit: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = net(unit)
        return maps[:, order] if shuffled else maps

    return head


def floor() -> float:
    """Mean SSIM of the blind attacker."""
    return attack(Blind, arena(constant))


def check_identity(make: Make) -> None:
    """What hides nothing is rebuilt, at least to the attacker's `identity_ssim`."""
    reached, wanted = attack(make, arena(identity)), make().identity_ssim
    assert reached >= wanted, f"identity head: SSIM {reached:.3f}, at least {wanted} was expected"


def check_constant(make: Make) -> None:
    """What tells nothing leaves the attacker at the floor."""
    above = float(corrected(attack(make, arena(constant)), floor()))
    assert above <= 0.02, f"constant head: {above:.3f} above the floor; the attacker sees images"


def check_shuffle(make: Make) -> None:
    """The order of the channels makes no difference."""
    a = attack(make, arena(convolutions()))
    b = attack(make, arena(convolutions(shuffled=True)))
    assert abs(a - b) < 0.02, f"shuffled channels change the score from {a:.3f} to {b:.3f}"


def check_seed(make: Make) -> None:
    """The same seed gives the same score."""
    where = arena(convolutions())
    a, b = attack(make, where, seed=4), attack(make, where, seed=4)
    assert abs(a - b) <= 1e-6, f"one seed gives {a} and {b}"


def check_memory(make: Make, mib: int = 512) -> None:
    """An attack on 160 small images stays within `mib` MiB of Python-side memory."""
    tracemalloc.start()
    try:
        attack(make, arena(convolutions()))
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert peak <= mib, f"the attack took {peak:.0f} MiB"


def check_no_peeking(make: Make) -> None:
    """What is rebuilt depends on the features alone: those of one image give that image."""
    where = arena(convolutions())
    attacker = make()
    context = Context(0, input_size=SIDE)
    if attacker.needs_head:
        context.head = where.head
    attacker.fit(pairs_of(where), context)
    test = where.features[TRAIN + VALIDATION : TRAIN + VALIDATION + 4]
    with torch.no_grad():
        forward = attacker.reconstruct(test)
        backward = attacker.reconstruct(np.ascontiguousarray(test[::-1])).flip(0)
    assert forward.shape == (4, 3, SIDE, SIDE)
    assert float(forward.min()) >= 0
    assert float(forward.max()) <= 1
    off = float((forward - backward).abs().max())
    assert off < 0.05, f"the order of the images changes pictures by {off:.3f}"


def check_settings(make: Make) -> None:
    """Every setting shows in `repr`, which results are keyed by."""
    attacker = make()
    for name in attacker.settings():
        assert f"{name}=" in repr(attacker), f"repr does not show the setting {name!r}"
    assert attacker.name, "an attacker needs a name"


CHECKS = (
    check_settings,
    check_constant,
    check_identity,
    check_shuffle,
    check_seed,
    check_no_peeking,
    check_memory,
)


def conformance(make: Make) -> None:
    """Run every check.

    Args:
        make: Gives a fresh attacker with settings small enough for 96 training images.

    Raises:
        AssertionError: With what is wrong.
    """
    for check in CHECKS:
        check(make)
