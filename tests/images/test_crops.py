import numpy as np

from partopt.images.crops import LEAST, random_crops


def ramps(count=40, side=48):
    """Pictures whose values say where they were: red is the row, green the column."""
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    picture = np.stack([rows * 5, columns * 5, np.zeros_like(rows)]).astype(np.uint8)
    return np.repeat(picture[None], count, 0)


def test_crops_are_parts_of_their_picture_at_its_size():
    images = ramps()
    crops = random_crops(images, 3)
    assert crops.shape == images.shape
    assert crops.dtype == np.uint8
    rows = crops[:, 0, -1, 24].astype(float) - crops[:, 0, 0, 24]
    columns = crops[:, 1, 24, -1].astype(float) - crops[:, 1, 24, 0]
    areas = np.abs(rows * columns) / (47 * 5) ** 2
    assert areas.min() > LEAST - 0.07
    assert areas.max() <= 1.01
    assert np.ptp(areas) > 0.4, "of many sizes"
    mirrored = (columns < 0).mean()
    assert 0.2 < mirrored < 0.8
    assert (rows > 0).all(), "never upside down"
    assert len(np.unique(crops[:, 0, 0, 24])) > 5, "and places"


def test_a_seed_gives_the_same_crops_and_another_one_others():
    images = ramps(4)
    assert np.array_equal(random_crops(images, 1), random_crops(images, 1))
    assert not np.array_equal(random_crops(images, 1), random_crops(images, 2))
    assert np.array_equal(random_crops(images, 1)[:2], random_crops(images[:2], 1))
