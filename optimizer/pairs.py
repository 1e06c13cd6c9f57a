"""What an attacker is given at a cut: feature maps beside pictures, mirrored ones too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..attackers.base import Attacker, Context
from ..attackers.features import MIRRORED, FeatureStore
from ..attackers.rows import Rows
from ..graph import Cut


@dataclass(frozen=True)
class Pairs:
    """Feature maps and pictures (uint8, at the scored resolution) of the three parts."""

    train: Rows
    targets: Rows
    held_out: Rows
    held_out_pictures: np.ndarray
    test: Rows
    originals: np.ndarray


def pairs_of(
    store: FeatureStore,
    cut: Cut,
    attacker: Attacker,
    pictures: np.ndarray,
    also: Sequence[Cut] = (),
    most: int | None = None,
) -> Pairs:
    """Read or make the features of `cut` (and, in the same pass, of the cuts in `also`).

    With `most` an attacker gets only so many of the training images, the first ones.
    """
    images = store.images
    part = {p: pictures[slice(*images.bounds(p))] for p in ("train", "validation", "test")}
    few = part["train"][:most]
    train, targets = store.rows(cut, "train", also).first(len(few)), Rows([few])
    if attacker.augments:
        train = train.joined(store.rows(cut, MIRRORED, also).first(len(few)))
        targets = targets.joined(Rows([few[..., ::-1]]))
    return Pairs(
        train,
        targets,
        store.rows(cut, "validation", also),
        part["validation"],
        store.rows(cut, "test", also),
        part["test"],
    )


def arm(context: Context, store: FeatureStore, cut: Cut, attacker: Attacker) -> None:
    """Give an attacker that wants it the public head."""
    if attacker.needs_head:
        context.head = store.head(cut)
        context.input_size = store.images.images.shape[-1]
