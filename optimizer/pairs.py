"""What an attacker is given at a cut: feature maps beside pictures, also mirrored and cropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..attackers.base import Attacker, Context
from ..attackers.features import CROPS, MIRRORED, FeatureStore
from ..attackers.pairs import Pairs
from ..attackers.rows import Rows
from ..graph.build import Cut
from ..hashing import hash_json
from ..images.load import at_resolution

LARGEST = 1 << 20  # bytes of one image's boundary tensors, up to which crops are added


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """Feature maps of the test images, and those images (uint8), which no attacker is given."""

    features: Rows
    images: np.ndarray


def pairs_at(
    cut: Cut,
    attacker: Attacker,
    store: FeatureStore,
    pictures: np.ndarray,
    also: Sequence[Cut] = (),
    most: int | None = None,
) -> tuple[Pairs, Unseen]:
    """Read or make the features of `cut` (and, in the same pass, of the cuts in `also`).

    Args:
        cut: The cut.
        attacker: Who is to learn from the pairs; decides whether mirrored images and random crops
            are among them.
        store: The features.
        pictures: All images at the scored resolution, uint8.
        also: Further cuts.
        most: So many of the training images, the first ones; None is all.
    """
    images, views = store.images, views_at(cut, attacker)
    part = {p: pictures[slice(*images.bounds(p))] for p in ("train", "validation", "test")}
    few = part["train"][:most]
    train, targets = store.rows(cut, "train", also).first(len(few)), Rows([few])
    if attacker.augments:
        train = train.joined(store.rows(cut, MIRRORED, also).first(len(few)))
        targets = targets.joined(Rows([few[..., ::-1]]))
    for number in range(1, views + 1):
        cropped = store.crops(number)[: len(few)]
        train = train.joined(store.rows(cut, f"{CROPS}{number}", also).first(len(few)))
        targets = targets.joined(Rows([at_resolution(cropped, pictures.shape[-1])]))
    boundary = [spec.name for spec in cut.boundary]
    pairs = Pairs(
        features=train,
        images=targets,
        held_out=store.rows(cut, "validation", also),
        held_out_images=part["validation"],
        key=hash_json(
            [store.key, boundary, attacker.augments, views, len(few), pictures.shape[-1]]
        ),
    )
    return pairs, Unseen(features=store.rows(cut, "test", also), images=part["test"])


def views_at(cut: Cut, attacker: Attacker) -> int:
    """How many random crops of each training image an attacker is given at a cut.

    Large maps have many cells to learn from in every image, and would fill the disk.
    """
    return attacker.views if cut.payload_bytes <= LARGEST else 0


def give_head(context: Context, store: FeatureStore, cut: Cut, attacker: Attacker) -> None:
    """Give an attacker that wants it the public head."""
    if attacker.needs_head:
        context.head = store.head(cut)
        context.input_size = store.images.images.shape[-1]
