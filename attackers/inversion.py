"""White-box inversion: look for the image whose features are those that were seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

Head = Callable[[torch.Tensor], torch.Tensor]
DISTANCES = ("l2", "cosine")
SIZES = ("input", "scored")
LEVELS: tuple[tuple[int, ...], ...] = ((0,), (0, 2, 4), (2, 3, 4, 5))


@dataclass(frozen=True)
class Objective:
    """What is minimised: feature distance + `tv` times total variation.

    Attributes:
        distance: ``l2``, relative to the map's mean square, or ``cosine``, one minus the similarity
            of the flattened maps.
        size: Of the pictures that are descended on: ``scored``, the size they are scored at, or
            ``input``, what the head sees, scaled down afterwards.
        tv: Weight of the total variation (Rudin, Osher and Fatemi, 1992), mean over pixels.
        levels: The picture descended on is the start plus a sum of pictures, one for each level,
            smaller by 2**level and scaled up; (0,) is the picture alone. Coarse levels move whole
            areas in one step, and without level 0 nothing finer than a patch can be made up.
    """

    distance: str = "l2"
    tv: float = 0.1
    size: str = "scored"
    levels: tuple[int, ...] = (0,)


def feature_distance(found: torch.Tensor, wanted: torch.Tensor, kind: str) -> torch.Tensor:
    """Distance per image of two batches of maps (N, C, h, w); shape (N,)."""
    a, b = found.flatten(1), wanted.flatten(1)
    if kind == "cosine":
        return 1 - F.cosine_similarity(a, b, dim=1)
    return ((a - b) ** 2).mean(1) / (b**2).mean(1).clamp_min(1e-6)


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of neighbouring pixels per image; shape (N,)."""
    down = (images[:, :, 1:] - images[:, :, :-1]).abs().mean((1, 2, 3))
    right = (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3))
    return down + right


def invert(
    head: Head,
    wanted: torch.Tensor,
    start: torch.Tensor,
    objective: Objective,
    *,
    side: int,
    steps: int,
    lr: float,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Descend from `start` (N, 3, R, R) in [0, 1] with Adam; all images of the batch at once.

    Each image keeps the state with the smallest objective it has met, its start included, so that
    the result is never a worse fit than the start.

    Args:
        head: Images (N, 3, side, side) to normalised maps.
        wanted: The maps that were seen, (N, C, h, w).
        start: First guesses.
        objective: What to minimise.
        side: The model's input size in pixels; images are resized to it before the head.
        steps: Steps of Adam.
        lr: Learning rate, in units of pixel values.
        on_step: Called after each step.

    Returns:
        Images (N, 3, R, R) in [0, 1] and their feature distances (N,).
    """
    with torch.enable_grad():
        picture = _Picture(start, objective.levels)
        optimiser = torch.optim.Adam(picture.parts, lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps), lr / 20)
        best = start.detach().clone()
        lowest = torch.full((len(start),), torch.inf, device=start.device)
        distances = lowest.clone()
        for step in range(steps + 1):
            inside = picture().clamp(0, 1)
            distance = feature_distance(head(resized(inside, side)), wanted, objective.distance)
            loss = distance + objective.tv * total_variation(inside)
            with torch.no_grad():
                better = loss < lowest  # false for what is not a number
                lowest = torch.where(better, loss, lowest)
                distances = torch.where(better, distance, distances)
                best[better] = inside[better].detach()
            if step == steps:
                break
            optimiser.zero_grad(set_to_none=True)
            loss.sum().backward()
            optimiser.step()
            schedule.step()
            picture.pull_inside()
            on_step()
    return best, distances.detach()


class _Picture:
    """Images (N, 3, R, R) as a start and changes to it at several levels."""

    def __init__(self, start: torch.Tensor, levels: tuple[int, ...]) -> None:
        self.start = start.detach()
        self.finest = levels.index(0) if 0 in levels else None
        self.parts = [
            torch.zeros(
                *start.shape[:2],
                *(max(1, n >> level) for n in start.shape[2:]),
                device=start.device,
                requires_grad=True,
            )
            for level in levels
        ]

    def __call__(self) -> torch.Tensor:
        total = self.start
        for part in self.parts:
            total = total + resized(part, total.shape[-1])
        return total

    def pull_inside(self) -> None:
        """Take back what left [0, 1], where there is a level that can."""
        if self.finest is not None:
            with torch.no_grad():
                total = self()
                self.parts[self.finest] += total.clamp(0, 1) - total


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images at another size, with antialiasing where that is smaller."""
    if images.shape[-1] == side and images.shape[-2] == side:
        return images
    smaller = side < images.shape[-1]
    return F.interpolate(
        images, (side, side), mode="bilinear", align_corners=False, antialias=smaller
    )
