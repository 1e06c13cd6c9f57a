import itertools

import numpy as np
import pytest

from partopt.errors import DataError, UsageError
from partopt.hashing import hash_array
from partopt.images.dead_leaves import dead_leaves
from partopt.images.load import Split, at_resolution, load_images
from partopt.preprocessing import Preprocessing

P = Preprocessing(32, 36)


def test_folder_with_classes_corrupt_and_duplicate_files(photo_folder):
    images = load_images(photo_folder, P, Split(40, 10, 10), minimum=20)
    assert images.images.shape == (60, 3, 32, 32)
    assert images.images.dtype == np.uint8
    assert len(images.skipped) == 2
    assert any("bad.jpg" in s for s in images.skipped)
    assert any("duplicate" in s for s in images.skipped)
    assert any("bad.jpg" in w for w in images.warnings)


def test_the_split_is_disjoint_and_seeded(photo_folder):
    one = load_images(photo_folder, P, Split(30, 10, 10), seed=1, minimum=20)
    same = load_images(photo_folder, P, Split(30, 10, 10), seed=1, minimum=20)
    other = load_images(photo_folder, P, Split(30, 10, 10), seed=2, minimum=20)
    assert one.digest == same.digest != other.digest
    assert len(set(one.names)) == 50
    parts = [one.part(p) for p in ("train", "validation", "test")]
    assert [len(p) for p in parts] == [30, 10, 10]
    assert np.array_equal(np.concatenate(parts), one.images), "no image is in two parts"
    assert len({hash_array(image) for image in one.images}) == 50, "nor a copy of one"


def test_fewer_images_than_wanted_are_said(photo_folder):
    images = load_images(photo_folder, P, Split(600, 100, 100), minimum=20)
    assert images.split.total == 60
    assert any("60 images were found, the budget wants 800" in w for w in images.warnings)


def test_too_few_images_is_an_error_that_says_how_many(photo_folder):
    with pytest.raises(DataError, match=r"60 usable images, 2 skipped.*at least 100"):
        load_images(photo_folder, P, Split(100, 20, 20), minimum=100)


def test_no_folder():
    with pytest.raises(UsageError, match="`data` got '/nowhere'"):
        load_images("/nowhere", P, Split(4, 2, 2))


def test_generated_images_are_named_as_such():
    images = load_images(None, P, Split(4, 2, 2))
    assert images.source.startswith("generated")
    assert "no --data was given" in images.warnings[0]


def test_dead_leaves_are_seeded_and_independent_of_count():
    assert np.array_equal(dead_leaves(3, 32, seed=5), dead_leaves(6, 32, seed=5)[:3])
    assert not np.array_equal(dead_leaves(1, 32, seed=5), dead_leaves(1, 32, seed=6))


def test_dead_leaves_have_a_natural_spectrum():
    """Power falls off about as 1/f^2 (amplitude 1/f), as in photographs."""
    images = dead_leaves(24, 128, seed=0).mean(1) / 255
    power = np.abs(np.fft.fft2(images - images.mean((1, 2), keepdims=True))) ** 2
    f = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None, :])
    bands = np.geomspace(0.02, 0.35, 9)
    centre = np.sqrt(bands[1:] * bands[:-1])
    mean = [power.mean(0)[(f >= a) & (f < b)].mean() for a, b in itertools.pairwise(bands)]
    slope = np.polyfit(np.log(centre), np.log(mean), 1)[0]
    assert -3.0 < slope < -1.5


def test_resolution_of_images():
    images = dead_leaves(2, 64, seed=0)
    small = at_resolution(images, 32)
    assert small.shape == (2, 3, 32, 32)
    assert abs(float(small.mean()) - float(images.mean())) < 2
    assert at_resolution(images, 64) is images
