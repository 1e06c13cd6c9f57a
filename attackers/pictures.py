"""Reconstructions beside originals, as small pictures kept by content key."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..cache import cache_dir, make_way, written_whole
from ..notices import notice

SHOWN = 6  # test images a picture


def path_of(key: str) -> Path:
    """Where the picture of the attack with this key (64 hex digits) is, or would be."""
    return cache_dir("reconstructions") / f"{key}.png"


def save(key: str, originals: np.ndarray, rebuilt: torch.Tensor) -> Path:
    """Write originals (uint8) over reconstructions (in [0, 1]), both (N, 3, R, R), as a PNG."""
    below = (rebuilt.clamp(0, 1) * 255).round().byte().cpu().numpy()
    rows = [np.concatenate(list(images), axis=2) for images in (originals, below)]
    picture = np.concatenate(rows, axis=1).transpose(1, 2, 0)
    path = path_of(key)
    make_way(path)
    with written_whole(path) as temporary:
        Image.fromarray(np.ascontiguousarray(picture)).save(temporary, format="PNG")
    return path


def stored(key: str, most: int = 64 << 20) -> bytes | None:
    """The PNG of the attack with this key, or None: never made, larger than `most`, or damaged."""
    path = path_of(key)
    if not path.is_file() or path.stat().st_size > most:
        return None
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).partition(":")[0][:80]
        notice(f"the picture {str(path)!r} is damaged ({reason}): it is left out")
        return None
    return data


def sheet(rows: Sequence[tuple[str, np.ndarray]], label: int = 120) -> Image.Image:
    """Rows of images (uint8, (N, 3, R, R)) with their names to the left."""
    height, width = rows[0][1].shape[2], sum(i.shape[2] for i in rows[0][1])
    page = Image.new("RGB", (label + width, height * len(rows)), "white")
    pen = ImageDraw.Draw(page)
    for i, (name, images) in enumerate(rows):
        strip = np.concatenate(list(images), axis=2).transpose(1, 2, 0)
        page.paste(Image.fromarray(np.ascontiguousarray(strip)), (label, i * height))
        pen.text((6, i * height + height // 2 - 5), name, fill="black")
    return page
