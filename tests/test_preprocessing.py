"""The same pixels as torchvision's, in memory that a thin picture cannot blow up."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from partopt.errors import PictureError
from partopt.graph import torchvision_cpu as _torchvision
from partopt.preprocessing import Preprocessing

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


@pytest.mark.parametrize("shape", [(1, 8000), (8000, 1), (2, 400_000), (1_000_000, 1)])
def test_a_thin_picture_takes_little_memory(shape, monkeypatch):
    """Seen in what torch is asked for, since its memory is not Python's."""
    asked = []
    real = torch.nn.functional.interpolate

    def watched(tensor, size, **how):
        asked.append(size[0] * size[1])
        return real(tensor, size=size, **how)

    monkeypatch.setattr(torch.nn.functional, "interpolate", watched)
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[..., 1] = 200
    tracemalloc.start()
    found = Preprocessing(224, 256).fit(pixels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not asked
    assert peak < 4 * pixels.nbytes + (1 << 20)
    assert (found == np.array([0, 200, 0])[:, None, None]).all()


def test_what_does_not_fit_into_memory_is_said(monkeypatch):
    def full(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(torch.nn.functional, "interpolate", full)
    with pytest.raises(PictureError, match="memory") as caught:
        Preprocessing(32, 36).fit(np.zeros((50, 50, 3), np.uint8))
    assert caught.value.code == "too-large"

    def wrong(*_, **__):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(torch.nn.functional, "interpolate", wrong)
    with pytest.raises(RuntimeError, match="ours"):
        Preprocessing(32, 36).fit(np.zeros((50, 50, 3), np.uint8))
