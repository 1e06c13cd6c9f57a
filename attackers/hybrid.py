"""White-box optimisation that starts from the decoder's picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from .base import Context, checked, fit_member
from .decoder import Decoder
from .pairs import Pairs
from .whitebox import WhiteBox


@dataclass(repr=False)
class Hybrid(WhiteBox):
    """The decoder's picture, refined until its features are those that were seen.

    The decoder brings what images look like, the descent brings the details that the features
    still hold. Where the descent does not help on validation images, the decoder's picture is kept
    as it is.

    Args:
        decoder: Settings of the decoder underneath.
    """

    name: ClassVar[str] = "hybrid"
    augments: ClassVar[bool] = True
    rank: ClassVar[int] = 4
    keeps_start: ClassVar[bool] = True

    decoder: Decoder = field(default_factory=Decoder)

    def fit(self, pairs: Pairs, context: Context) -> None:
        """Train the decoder, then choose the objective on validation images."""
        self._prepare(context, pairs.resolution)
        fitted = fit_member(self.decoder, pairs, context)
        assert isinstance(fitted, Decoder)
        self.decoder = fitted
        self._choose(pairs)

    @property
    def still_rising(self) -> bool:
        """Whether the decoder was still getting better when its budget ended."""
        return self.decoder.still_rising

    def reconstruct(self, features: np.ndarray) -> torch.Tensor:
        """Rebuild with the decoder, then descend."""
        if self.objective is None:
            return self.decoder.reconstruct(features)
        out = []
        for i, maps in enumerate(self._batches(features)):
            part = features[i * self.batch : (i + 1) * self.batch]
            start = self.decoder.reconstruct(part).to(maps.device)
            out.append(checked(self._descend(maps, start)[0], self).cpu())
        return torch.cat(out)
