"""The same pixels as torchvision's, in memory that a thin picture cannot blow up."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from partopt import preprocessing
from partopt.errors import PictureError
from partopt.graph import torchvision_cpu as _torchvision
from partopt.preprocessing import Preprocessing
from partopt.resizing import resized

assert _torchvision
from torchvision.transforms import InterpolationMode, functional  # noqa: E402

MODES = ("bilinear", "bicubic")
SHAPES = [
    (36, 36),
    (20, 20),
    (100, 100),
    (37, 200),
    (200, 37),
    (36, 500),
    (17, 18),
    (30, 31),
    (9, 144),
    (144, 9),
    (1, 16),
    (16, 1),
    (48, 900),
    (900, 48),
    (400, 300),
    (18, 500),
    (500, 18),
    (2, 128),
    (128, 2),
]
THIN = [(1, 70), (70, 1), (3, 200), (200, 3), (8, 800), (800, 9), (1, 300), (5, 700)]


def torchvisions(pixels: np.ndarray, how: Preprocessing) -> np.ndarray:
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    mode = InterpolationMode(how.interpolation)
    resized = functional.resize(tensor, [how.resize], mode, antialias=True)
    return functional.center_crop(resized, [how.input_size] * 2).numpy()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size", "resize"), [(32, 36), (48, 48), (40, 36), (64, 72)])
def test_bit_for_bit_torchvision(mode, size, resize):
    rng = np.random.default_rng(0)
    how = Preprocessing(size, resize, interpolation=mode)
    for shape in SHAPES:
        pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        found = how.fit(pixels)
        assert found.shape == (3, size, size)
        assert np.array_equal(found, torchvisions(pixels, how)), shape
        assert np.array_equal(found, how.to_unit(Image.fromarray(pixels)))


@pytest.mark.parametrize("mode", MODES)
def test_thin_pictures_are_torchvisions_but_for_ties(mode):
    """No tie where the scale is no simple fraction; never more than a level."""
    rng = np.random.default_rng(0)
    for resize in (36, 71):
        how = Preprocessing(32, resize, interpolation=mode)
        for shape in THIN:
            pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
            off = np.abs(how.fit(pixels).astype(int) - torchvisions(pixels, how))
            assert off.max() <= 1, shape
            assert (off > 0).mean() < 0.2, shape


SLIVERS = [(800, 1), (1, 8000), (8000, 1), (2, 400_000), (1_000_000, 1)]


def test_a_sliver_is_not_scaled_whole():
    """Whole, it would take 200 MB."""
    tracemalloc.start()
    Preprocessing(224, 256).fit(np.zeros((1, 800, 3), np.uint8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("shape", SLIVERS)
def test_a_thin_picture_takes_little_memory(shape):
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[..., 1] = 200
    tracemalloc.start()
    found = Preprocessing(224, 256).fit(pixels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * pixels.nbytes + (2 << 20)
    assert (found == np.array([0, 200, 0])[:, None, None]).all()


@pytest.mark.parametrize("mode", MODES)
def test_levels_are_bit_for_bit_pytorchs(mode):
    """Before they are rounded to bytes, where a difference would hide."""
    rng = np.random.default_rng(0)
    sizes = [
        (90, 75, 51, 42),
        (600, 30, 100, 9),
        (20, 17, 64, 54),
        (64, 64, 32, 32),
        (7, 300, 5, 99),
    ]
    sizes += [tuple(int(n) for n in rng.integers(3, 300, 4)) for _ in range(20)]
    for height, width, high, wide in sizes:
        channel = rng.integers(0, 256, (height, width), dtype=np.uint8)
        truth = torch.nn.functional.interpolate(
            torch.from_numpy(channel)[None, None].float(), (high, wide), mode=mode, antialias=True
        )[0, 0].numpy()
        rows, columns = slice(high // 4, high), slice(0, wide - wide // 3)
        found = resized(channel, (high, wide), rows, columns, mode)
        assert np.array_equal(found, truth[rows, columns]), (height, width, high, wide)


def test_what_the_network_gets_is_bit_for_bit_the_normalised_picture():
    how = Preprocessing(32, 36, mean=(0.1, 0.2, 0.3), std=(0.3, 0.7, 0.9))
    unit = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    truth = how.normalise(torch.from_numpy(unit)[None].float() / 255)
    assert how.prepared(unit).dtype == np.float32
    assert np.array_equal(how.prepared(unit), truth.numpy())


def test_what_does_not_fit_into_memory_is_said(monkeypatch):
    def full(*_, **__):
        raise MemoryError("Unable to allocate 3 GiB")

    monkeypatch.setattr(preprocessing, "resized", full)
    with pytest.raises(PictureError, match="memory") as caught:
        Preprocessing(32, 36).fit(np.zeros((50, 50, 3), np.uint8))
    assert caught.value.code == "too-large"

    def wrong(*_, **__):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(preprocessing, "resized", wrong)
    with pytest.raises(RuntimeError, match="ours"):
        Preprocessing(32, 36).fit(np.zeros((50, 50, 3), np.uint8))
