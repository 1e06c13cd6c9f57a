"""Who is in the picture: how many photos are picked out of all test photos by their reconstruction.

A reconstruction too blurred for SSIM may still tell one person from two hundred others. Photos and
reconstructions are compared by Pearson's correlation at several sizes, as they are and with what
all of them have in common taken away, which whoever sees many boundary tensors can do. The reading
that finds the most photos counts: largest of several, it is a little above chance where nothing is
told, never below what an onlooker could do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..errors import AttackError, ConfigError
from .base import as_images
from .intervals import clopper_pearson
from .scales import scaled

SIZES = (8, 16, 32)  # pixels, beside the pictures' own
_BLOCK = 64  # photos held in single precision together
_TIE = 1e-6  # a photo that is in the set twice is found as either of them
_FLAT = 1e-7  # standard deviation of a picture that shows nothing


@dataclass(frozen=True)
class Identified:
    """Top-1 retrieval: how many photos were picked out, by the reading that finds the most.

    Attributes:
        found: So many photos correlate with their own reconstruction more than all others do.
        images: Of so many.
        low, high: Exact (Clopper-Pearson) 95 % bounds of the share.
        reading: The reading they were found by: size in pixels, ``plain`` or ``centred``.
        by_reading: `found` of every reading.
    """

    found: int
    images: int
    low: float
    high: float
    reading: str
    by_reading: Mapping[str, int]

    @property
    def share(self) -> float:
        """Share of photos that were picked out, in [0, 1]."""
        return self.found / self.images

    @property
    def chance(self) -> float:
        """What guessing gives."""
        return 1 / self.images

    def as_dict(self) -> dict[str, Any]:
        """Plain values, which `of_dict` reads back."""
        return asdict(self)

    @classmethod
    def of_dict(cls, values: Any) -> Identified:
        """From plain values; bounds are computed anew from the counts.

        Raises:
            ConfigError: They are not what `as_dict` gives.
        """
        try:
            by_reading = {str(k): int(v) for k, v in values["by_reading"].items()}
            return _best(by_reading, int(values["images"]))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"the retrieval cannot be read: {error}") from error


class Lineup:
    """Collects reconstructions batch by batch, then says how many photos they pick out.

    `add` fits `look` of `scales.ssim_at`. Reconstructions are kept in single precision, 0.6 MiB
    each at 224 pixels: what a weak attack brings to light lies below the steps of half precision.

    Args:
        originals: uint8, (N, 3, R, R): photos among which each reconstruction's own is looked for.
        sizes: Compared at these, as far as the pictures are larger, and at their own size.

    Raises:
        AttackError: Fewer than two photos: nothing can be picked out.
    """

    def __init__(self, originals: np.ndarray, sizes: Sequence[int] = SIZES) -> None:
        if len(originals) < 2:
            raise AttackError(f"{len(originals)} photos cannot be told apart; use two or more")
        own = originals.shape[-1]
        self._originals = originals
        self._sizes = (*sorted(s for s in set(sizes) if s < own), own)
        self._rebuilt: dict[int, torch.Tensor] = {
            s: torch.zeros(len(originals), 3 * s * s) for s in self._sizes
        }
        self._there = np.zeros(len(originals), bool)

    def add(self, index: range, rebuilt: torch.Tensor) -> None:
        """Take the reconstructions (n, 3, R, R) in [0, 1] of the photos at `index`."""
        for size, kept in self._rebuilt.items():
            kept[index.start : index.stop] = _rows(rebuilt, size)
        self._there[index.start : index.stop] = True

    def result(self) -> Identified:
        """Top-1 retrieval over all readings.

        Raises:
            AttackError: Not every photo has a reconstruction, or one is not finite.
        """
        if not self._there.all():
            missing = int((~self._there).sum())
            raise AttackError(f"{missing} of {len(self._there)} photos have no reconstruction")
        by_reading = {}
        for size, pictures in self._rebuilt.items():
            if not bool(torch.isfinite(pictures).all()):
                raise AttackError("a reconstruction is not finite; the attack counts as failed")
            nothing = torch.zeros(())
            by_reading[f"{size} plain"] = self._hits(pictures, nothing, size)
            common = torch.cat([p.sum(0, keepdim=True) for p in self._photos(size)])
            common = common.sum(0) / len(self._there)
            by_reading[f"{size} centred"] = self._hits(pictures - pictures.mean(0), common, size)
        return _best(by_reading, len(self._there))

    def _photos(self, size: int) -> Iterator[torch.Tensor]:
        """The photos, a block at a time, one a row."""
        for start in range(0, len(self._originals), _BLOCK):
            yield _rows(as_images(self._originals[start : start + _BLOCK]), size)

    def _hits(self, pictures: torch.Tensor, common: torch.Tensor, size: int) -> int:
        """How many pictures correlate with their own photo at least as much as with any other."""
        pictures = _unit(pictures)
        alike = torch.cat([pictures @ _unit(p - common).T for p in self._photos(size)], 1)
        shows = (pictures != 0).any(1)
        return int((shows & (alike.diagonal() >= alike.max(1).values - _TIE)).sum())


def identify(rebuilt: torch.Tensor, originals: np.ndarray) -> Identified:
    """Top-1 retrieval of `originals` (N, 3, R, R), uint8, by `rebuilt` of the same shape."""
    lineup = Lineup(originals)
    for start in range(0, len(rebuilt), _BLOCK):
        stop = min(start + _BLOCK, len(rebuilt))
        lineup.add(range(start, stop), rebuilt[start:stop].cpu())
    return lineup.result()


def _rows(images: torch.Tensor, size: int) -> torch.Tensor:
    return scaled(images, size).flatten(1).float()


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows without their mean, of length 1; zero where a picture shows nothing."""
    rows = rows - rows.mean(1, keepdim=True)
    length = rows.norm(dim=1, keepdim=True)
    shows = length > _FLAT * rows.shape[1] ** 0.5
    return torch.where(shows, rows / length.clamp_min(1e-30), torch.zeros(()))


def _best(by_reading: Mapping[str, int], images: int) -> Identified:
    if not by_reading:
        raise ValueError("no reading")
    reading = max(by_reading, key=lambda name: by_reading[name])
    found = by_reading[reading]
    low, high = clopper_pearson(found, images)
    return Identified(found, images, low, high, reading, dict(by_reading))
