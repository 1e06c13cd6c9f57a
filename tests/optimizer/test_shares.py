import numpy as np
import pytest

from partopt.errors import AttackError
from partopt.optimizer.shares import own_scores, share_over, strictest


def test_a_mean_below_the_threshold_does_not_hide_the_images_that_pass_it():
    own = np.array([0.02] * 65 + [0.45] * 35)
    floor = np.full(100, 0.3)
    got = share_over(floor + own * (1 - floor), floor, 0.2)
    assert own.mean() < 0.2
    assert (got.hits, got.images, got.share) == (35, 100, 0.35)
    assert (got.low, got.high) == pytest.approx((0.2573, 0.4518), abs=1e-4)  # Clopper, Pearson


def test_one_image_copied_perfectly_is_seen():
    floor = np.random.default_rng(0).uniform(0.1, 0.6, 60)
    s = floor.copy()
    s[41] = 1.0
    got = share_over(s, floor, 0.2)
    assert (got.hits, got.index, got.largest) == (1, 41, 1.0)
    assert got.high == pytest.approx(0.0894, abs=1e-4)


def test_none_of_few_images_is_no_proof():
    few = share_over(np.zeros(20), np.zeros(20), 0.2)
    assert (few.hits, few.low) == (0, 0.0)
    assert few.high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_each_image_has_its_own_floor_and_the_threshold_itself_counts():
    floor = np.array([0.0, 0.5, 0.8, 0.8])
    s = np.array([0.2, 0.6, 0.8, 0.79])
    assert own_scores(s, floor) == pytest.approx([0.2, 0.2, 0.0, 0.0])
    assert share_over(s[:1], floor[:1], 0.2).hits == 1
    assert share_over(s, floor, 0.6, scale="raw").hits == 3


@pytest.mark.parametrize(
    ("s", "floor"),
    [
        (np.zeros(3), np.zeros(4)),
        (np.zeros(0), np.zeros(0)),
        (np.array([0.1, np.nan]), np.zeros(2)),
        (np.zeros((2, 2)), np.zeros((2, 2))),
    ],
)
def test_what_cannot_be_counted_is_a_failure(s, floor):
    with pytest.raises(AttackError):
        share_over(s, floor, 0.2)


def test_the_strictest_of_several_is_the_one_with_the_largest_bound():
    zero = np.zeros(100)
    some = share_over(np.repeat([0.9, 0.0], [7, 93]), zero, 0.2)
    fewer = share_over(np.repeat([0.9, 0.0], [1, 19]), np.zeros(20), 0.2)  # 5 %, but of 20
    assert strictest([some, fewer, share_over(zero, zero, 0.2)]) is fewer
    with pytest.raises(AttackError, match="no attacker"):
        strictest([])
