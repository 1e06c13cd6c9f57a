"""What the data of a run looks like: samples of each class, and how it was split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..attackers.pictures import sheet
from ..images import ton_iot
from ..images.load import ImageSet, at_resolution

PARTS = ton_iot.PARTS


def class_of(name: str) -> str:
    """The class of a window, or the folder of a photo."""
    if " " in name and name.split(" ")[0] in ton_iot.CLASSES:
        return name.split(" ")[0]
    return name.rpartition("/")[0] or "images"


def preview(images: ImageSet, side: int = 96, shown: int = 8, most: int = 16) -> Image.Image:
    """A row of training images for each class."""
    classes = [class_of(n) for n in images.names[: images.split.train]]
    rows = []
    for name in _ordered(classes)[:most]:
        few = [i for i, c in enumerate(classes) if c == name][:shown]
        pictures = at_resolution(images.images[few], side)
        blank = np.full((shown - len(few), *pictures.shape[1:]), 255, np.uint8)
        tiles = np.concatenate([pictures, blank])
        rows.append((name, np.pad(tiles, ((0, 0), (0, 0), (2, 2), (2, 2)), constant_values=255)))
    return sheet(rows)


def table(images: ImageSet, floor: float, side: int) -> RenderableType:
    """Images by class and part, what was odd, and the floor."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("class")
    for part in PARTS:
        shown.add_column(part, justify="right")
    counts = {p: Counter(map(class_of, images.names[slice(*images.bounds(p))])) for p in PARTS}
    for name in _ordered([class_of(n) for n in images.names]):
        shown.add_row(name, *(str(counts[p][name]) for p in PARTS))
    shown.add_row("all", *(str(sum(counts[p].values())) for p in PARTS), style="bold")
    lines = [
        f"\n{images.source}",
        *images.notes,
        f"floor at {side}x{side}: {floor:.3f} (SSIM of an attacker that sees no features)",
        *(f"! {w}" for w in images.warnings),
    ]
    return Group(shown, Text("\n".join(lines)))


def _ordered(names: Sequence[str]) -> list[str]:
    known = [c for c in ton_iot.CLASSES if c in names]
    return known or sorted(set(names))
