"""The best of several pictures for each image, told apart by how well their features fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from .base import Context, as_images, checked, fit_member
from .hybrid import Hybrid
from .inversion import feature_distance, resized
from .pairs import Pairs
from .rmle import Rmle
from .scoring import ssim
from .whitebox import WhiteBox


@dataclass(repr=False)
class Ensemble(WhiteBox):
    """Linear, decoder, hybrid and rmle; each image takes the candidate whose features fit best.

    The attacker runs the public head on each candidate and compares with what was seen; it never
    looks at the secret image. A candidate that fits the features better is not always the one that
    looks better, so which members take part is decided on validation images, the single members
    included: on those the ensemble is at least as good as its best member.

    Args:
        hybrid: Settings of the hybrid, whose decoder and linear attacker are members too.
        rmle: Settings of the white-box optimisation.
    """

    name: ClassVar[str] = "ensemble"
    augments: ClassVar[bool] = True
    rank: ClassVar[int] = 5

    hybrid: Hybrid = field(default_factory=Hybrid)
    rmle: Rmle = field(default_factory=Rmle)
    members: tuple[str, ...] = field(default=(), init=False)

    def fit(self, pairs: Pairs, context: Context) -> None:
        """Fit every member, then choose who takes part."""
        self._prepare(context, pairs.resolution)
        hybrid = fit_member(self.hybrid, pairs, context)
        rmle = fit_member(self.rmle, pairs, context)
        assert isinstance(hybrid, Hybrid)
        assert isinstance(rmle, Rmle)
        self.hybrid, self.rmle = hybrid, rmle
        pictures = pairs.held_out_images
        few = min(self.tuning_images, len(pictures))
        maps = pairs.held_out.take(range(few))
        candidates, distances = self._candidates(maps)
        best = -np.inf
        for members in _groups(tuple(candidates)):
            picked = _pick(candidates, distances, members)
            value = float(ssim(picked, as_images(pictures[:few])).mean())
            if value > best:
                best, self.members = value, members

    @property
    def still_rising(self) -> bool:
        """Whether the decoder was still getting better when its budget ended."""
        return self.hybrid.still_rising

    def reconstruct(self, features: np.ndarray) -> torch.Tensor:
        """Candidates of all members that take part, and of each image the best fit."""
        candidates, distances = self._candidates(features, self.members)
        return checked(_pick(candidates, distances, self.members), self)

    def _candidates(
        self, features: np.ndarray, members: tuple[str, ...] = ()
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        makers = {
            "linear": self.hybrid.decoder.linear.reconstruct,
            "decoder": self.hybrid.decoder.reconstruct,
            "hybrid": self.hybrid.reconstruct,
            "rmle": self.rmle.reconstruct,
        }
        chosen = members or tuple(makers)
        candidates = {name: makers[name](features) for name in chosen}
        distances = {name: self._fit(c, features) for name, c in candidates.items()}
        return candidates, distances

    def _fit(self, images: torch.Tensor, features: np.ndarray) -> torch.Tensor:
        """How far each candidate's features are from those seen; shape (N,)."""
        assert self._head is not None, "fit first"
        out = []
        with torch.no_grad():
            for i, maps in enumerate(self._batches(features)):
                part = images[i * self.batch : (i + 1) * self.batch].to(maps.device)
                found = self._head(resized(part, self._side))
                out.append(feature_distance(found, maps, "l2").cpu())
        return torch.cat(out)


def _groups(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Each member alone, then the larger sets of the stronger ones, then all."""
    return [*((n,) for n in names), *(names[i:] for i in range(len(names) - 1))]


def _pick(
    candidates: dict[str, torch.Tensor],
    distances: dict[str, torch.Tensor],
    members: tuple[str, ...],
) -> torch.Tensor:
    """Of each image the candidate with the smallest distance."""
    stacked = torch.stack([candidates[m] for m in members])
    which = torch.stack([distances[m] for m in members]).nan_to_num(torch.inf).argmin(0)
    return stacked[which, torch.arange(stacked.shape[1])]
