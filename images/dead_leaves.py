"""Natural-looking images without a download: the dead leaves model.

Opaque discs of random size, colour and texture fall on the plane and occlude one another. With
radii drawn from a power law of exponent 3 the pictures share the scale invariance, the edges and
the 1/f spectrum of photographs (Lee, Mumford and Huang, "Occlusion models for natural images", IJCV
2001; Baradad et al., "Learning to see by looking at noise", NeurIPS 2021). Leaves here carry a
colour, a linear shade and band-limited noise; a share of images has a smooth background without
leaves (a sky), which photographs have and pure dead leaves lack.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def dead_leaves(
    count: int, size: int, seed: int = 0, *, smallest: float = 2.0, largest: float = 0.45
) -> np.ndarray:
    """Generate `count` images, uint8 of shape (count, 3, size, size).

    Args:
        count: How many.
        size: Height and width in pixels.
        seed: The same seed gives the same images; image *i* does not depend on `count`.
        smallest: Smallest radius in pixels.
        largest: Largest radius as a share of `size`.
    """
    images = np.empty((count, 3, size, size), np.uint8)
    for i in range(count):
        images[i] = _one(size, np.random.default_rng([seed, i]), smallest, largest * size)
    return images


def _one(size: int, rng: np.random.Generator, smallest: float, largest: float) -> np.ndarray:
    noise = _texture(size, rng)
    # Photographs are mostly grey with some colour: levels vary widely, chroma little.
    palette = (rng.beta(1.1, 1.1, (6, 1)) + rng.normal(0, 0.1, (6, 3))).astype(np.float32)
    canvas = _shaded(size, palette[0], rng)
    sky = int(size * rng.uniform(0, 0.7)) if rng.random() < 0.4 else 0
    # Inverse-transform sampling of p(r) ~ r^-3 between the two radii.
    leaves = int(rng.integers(80, 320))
    u = rng.random(leaves)
    radii = (smallest**-2 - u * (smallest**-2 - largest**-2)) ** -0.5
    radii[: int(rng.integers(6, 18))] = rng.uniform(0.3, 1.0) * largest
    for radius in radii:
        cx, cy = rng.uniform(0, size), rng.uniform(sky, size)
        x0, x1 = max(0, int(cx - radius)), min(size, int(cx + radius) + 1)
        y0, y1 = max(0, int(cy - radius)), min(size, int(cy + radius) + 1)
        if x0 >= x1 or y0 >= y1:
            continue
        ys, xs = np.mgrid[y0:y1, x0:x1].astype(np.float32)
        inside = (xs - cx) ** 2 + (ys - cy) ** 2 <= radius**2
        colour = palette[rng.integers(6)] + rng.normal(0, 0.1) + rng.normal(0, 0.03, 3)
        slope = rng.normal(0, 0.12, 2) / radius
        shade = (xs - cx) * slope[0] + (ys - cy) * slope[1]
        shift = rng.integers(0, size, 2)
        grain = rng.choice([0.0, 0.04, 0.1]) * np.roll(noise, shift, (0, 1))[y0:y1, x0:x1]
        leaf = colour.astype(np.float32)[:, None, None] + shade + grain
        patch = canvas[:, y0:y1, x0:x1]
        np.copyto(patch, leaf, where=inside)
    levels: np.ndarray = np.clip(canvas * 255, 0, 255).astype(np.uint8)
    return levels


def _shaded(size: int, colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    slope = rng.normal(0, 0.3, 2)
    shade = ramp[None, :] * slope[0] + ramp[:, None] * slope[1]
    canvas: np.ndarray = colour[:, None, None] + shade
    return canvas


def _texture(size: int, rng: np.random.Generator) -> np.ndarray:
    """Noise with a 1/f amplitude spectrum, zero mean, unit variance."""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    f[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / f
    noise: np.ndarray = np.fft.irfft2(spectrum, s=(size, size)).astype(np.float32)
    standard: np.ndarray = (noise - noise.mean()) / noise.std()
    return standard


def encoded(size: int, seed: int = 0) -> bytes:
    """One generated image as a JPEG file of `size` pixels square."""
    file = io.BytesIO()
    Image.fromarray(dead_leaves(1, size, seed)[0].transpose(1, 2, 0)).save(file, "JPEG")
    return file.getvalue()
