"""What quantising costs: top-1 before and after, or how often the two agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..errors import DataError

Network = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Accuracy:
    """Top-1 of two networks on the same images.

    Attributes:
        images: How many.
        agreement: Share of images that both give the same class.
        before, after: Share given the right class; None without labels.
    """

    images: int
    agreement: float
    before: float | None = None
    after: float | None = None

    @property
    def drop(self) -> float:
        """Loss of top-1 on these images; without labels, the most that it can be."""
        if self.before is None or self.after is None:
            return 1.0 - self.agreement
        # In whole images: 2 of 200 are 0.01 and not a rounding error more.
        return round((self.before - self.after) * self.images) / self.images


def accuracy(
    before: Network,
    after: Network,
    batches: Sequence[torch.Tensor],
    labels: torch.Tensor | None = None,
) -> Accuracy:
    """Compare two networks.

    Args:
        before, after: Map (batch, ...) to scores (batch, classes).
        batches: Images that nothing was calibrated on.
        labels: Class of every image, in order.

    Raises:
        DataError: No images, more or fewer labels than images, or scores that are not (batch,
            classes) or not numbers.
    """
    first = [_classes(before, b) for b in batches]
    second = [_classes(after, b) for b in batches]
    if not first:
        raise DataError("`batches` holds no images to compare answers on")
    one, two = torch.cat(first), torch.cat(second)
    agreement = float((one == two).double().mean())
    if labels is None:
        return Accuracy(len(one), agreement)
    if len(labels) != len(one):
        raise DataError(f"`labels` got {len(labels)} for {len(one)} images; give one for each")
    shares = [float((c == labels).double().mean()) for c in (one, two)]
    return Accuracy(len(one), agreement, *shares)


def _classes(network: Network, batch: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        scores = network(batch)
    if scores.ndim != 2 or len(scores) != len(batch) or bool(scores.isnan().any()):
        raise DataError(
            f"`batches` gave scores {tuple(scores.shape)} for {len(batch)} images, or scores that "
            "are not numbers; top-1 wants (batch, classes)"
        )
    return scores.argmax(1)
