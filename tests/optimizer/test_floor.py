import numpy as np
import pytest

from partopt.attackers.blind import Blind
from partopt.attackers.pairs import Pairs
from partopt.attackers.scoring import ssim_of
from partopt.images.dead_leaves import dead_leaves
from partopt.images.load import ImageSet, Split, at_resolution
from partopt.optimizer import floor as module
from partopt.optimizer.floor import floor_of, floors_of


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return ImageSet(dead_leaves(24, 72, seed=7), Split(12, 4, 8), "leaves", "f" * 64)


def test_each_side_has_the_floor_of_a_blind_attacker_of_that_side(images):
    floors = floors_of(images, 64, (64, 32), seed=3)
    assert list(floors) == [64, 32]
    assert np.array_equal(floors[64], floor_of(images, 64, 3))
    # As reconstructions are: rebuilt at 64 pixels, then scaled down.
    small = at_resolution(at_resolution(images.images, 64), 32)
    blind = Blind()
    nothing = np.zeros((1, 1, 1, 1), np.float16)
    context = module.Context(seed=module.derive_seed(3, "blind"))
    blind.fit(Pairs.of((nothing, small[:12]), (nothing, small[12:16])), context)
    many = np.zeros((8, 1, 1, 1), np.float16)
    assert np.array_equal(floors[32], ssim_of(blind.reconstruct, many, small[16:]))
    # Smaller pictures are harder to guess: the floor of another side would hide a leak.
    assert floors[32].mean() < floors[64].mean() - 0.02


def test_a_floor_is_kept_under_its_side(images, monkeypatch):
    first = floors_of(images, 32, (32, 16), seed=0)
    monkeypatch.setattr(module, "_made", lambda *a: pytest.fail("made again"))
    again = floors_of(images, 32, (32, 16), seed=0)
    assert all(np.array_equal(first[s], again[s]) for s in first)
    assert not np.array_equal(first[32], first[16])
