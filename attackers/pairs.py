"""What an attacker learns from at one cut: feature maps beside pictures. Never the test images."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

import numpy as np

from .rows import Rows, as_rows


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Training pairs, and validation pairs to choose settings on.

    Attributes:
        features: Training maps, rows of shape (C, h, w), normalised, half precision.
        images: The pictures that they were made from, rows of shape (3, R, R), uint8.
        held_out: Validation maps.
        held_out_images: Their pictures, (N, 3, R, R), uint8.
        key: Names what these pairs are. Attackers fitted on pairs of one key are interchangeable;
            a key of its own, where nobody said what the pairs are, shares nothing.
    """

    features: Rows
    images: Rows
    held_out: Rows
    held_out_images: np.ndarray
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of(
        cls,
        train: tuple[Rows | np.ndarray, Rows | np.ndarray],
        validation: tuple[Rows | np.ndarray, np.ndarray],
    ) -> Pairs:
        """Pairs from arrays: maps and pictures for training, and for validation."""
        return cls(
            features=as_rows(train[0]),
            images=as_rows(train[1]),
            held_out=as_rows(validation[0]),
            held_out_images=np.asarray(validation[1]),
        )

    def with_features(self, features: Rows) -> Pairs:
        """The same pictures beside other maps, under a key of their own."""
        return Pairs(
            features=features,
            images=self.images,
            held_out=self.held_out,
            held_out_images=self.held_out_images,
        )

    @property
    def resolution(self) -> int:
        """Side of the pictures, pixels."""
        return int(self.images.shape[-1])
