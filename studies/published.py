"""What the layer-partitioning paper reports, to stand beside our own results.

Rajasekar, Loh, Fok and Thing, arXiv:2404.07437. Only its headline numbers are used here; runtimes
are theirs, in seconds, on their machine, and compare with ours as ratios only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One model on one kind of data.

    Attributes:
        points: How many cut points the paper looks at.
        layer: The one it chooses, counted from 1.
        full_s, split_s: Seconds of the whole model in the enclave, and of the split; None where
            the paper's figure is not known to us.
    """

    points: int
    layer: int
    full_s: float | None
    split_s: float | None

    @property
    def share(self) -> float | None:
        """The paper's speed-up, (full - split) / full."""
        return share(self.full_s, self.split_s)

    @property
    def ratio(self) -> float | None:
        """The speed-up as a ratio, full / split."""
        return ratio(self.full_s, self.split_s)


PHOTOS, TELEMETRY = "ImageNet", "TON_IoT"
MODELS = ("vgg16", "resnet50", "efficientnet_b0")
HEADLINES = {
    ("vgg16", PHOTOS): Published(13, 8, 4.2, 1.4),
    ("resnet50", PHOTOS): Published(5, 4, 4.02, 3.6),
    ("efficientnet_b0", PHOTOS): Published(8, 4, 3.7, 2.5),
    ("resnet50", TELEMETRY): Published(5, 3, 4.02, 3.04),
    ("efficientnet_b0", TELEMETRY): Published(8, 4, None, None),
}


def share(full: float | None, split: float | None) -> float | None:
    """(full - split) / full: 0 is no gain, negative is a loss."""
    return None if full is None or split is None or full <= 0 else (full - split) / full


def ratio(full: float | None, split: float | None) -> float | None:
    """full / split: 1 is no gain."""
    return None if full is None or split is None or split <= 0 else full / split
