import json

import numpy as np
import pytest

from partopt.errors import AttackError, ConfigError
from partopt.optimizer.shares import Share, own_scores, share_over, strictest


def test_a_mean_below_the_threshold_does_not_hide_the_images_that_pass_it():
    own = np.array([0.02] * 65 + [0.45] * 35)
    floor = np.full(100, 0.3)
    got = share_over(floor + own * (1 - floor), floor, 0.2)
    assert own.mean() < 0.2
    assert (got.hits, got.images, got.share) == (35, 100, 0.35)
    assert (got.low, got.high) == pytest.approx((0.2573, 0.4518), abs=1e-4)  # Clopper, Pearson
    assert "35 of 100" in got.exceeds(0.05)


def test_one_image_copied_perfectly_is_seen():
    floor = np.random.default_rng(0).uniform(0.1, 0.6, 60)
    s = floor.copy()
    s[41] = 1.0
    got = share_over(s, floor, 0.2)
    assert (got.hits, got.index, got.largest) == (1, 41, 1.0)
    assert got.high == pytest.approx(0.0894, abs=1e-4)
    assert "1 of 60 test images reach 0.2 on their own" in got.exceeds(0.05)
    assert got.exceeds(0.1) == ""


def test_none_of_few_images_is_no_proof():
    few = share_over(np.zeros(20), np.zeros(20), 0.2)
    assert (few.hits, few.low) == (0, 0.0)
    assert few.high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert few.exceeds(0.05)
    assert not share_over(np.zeros(80), np.zeros(80), 0.2).exceeds(0.05)


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


def test_it_survives_json_and_its_bounds_are_computed_anew():
    got = share_over(np.linspace(0, 0.5, 30), np.zeros(30), 0.2)
    values = json.loads(json.dumps(got.as_dict()))
    assert Share.of_dict(values) == got
    assert Share.of_dict({**values, "high": 0.0}) == got
    for broken in ({}, None, {**values, "hits": 31}, {**values, "largest": float("nan")}):
        with pytest.raises(ConfigError, match="share of images"):
            Share.of_dict(broken)
