import numpy as np
import pytest

from partopt.attackers.intervals import student
from partopt.attackers.scoring import score
from partopt.errors import AttackError, UsageError
from partopt.optimizer.seeds import pooled

COUNT = 60


def trainings(rng, mean: float, spread: float, seeds: int = 3, images: float = 0.1):
    """Several trainings on the same images: each image has its own level, each training its."""
    level = rng.normal(0, images, COUNT)
    return [mean + rng.normal(0, spread) + level for _ in range(seeds)]


def test_nothing_is_said_of_fewer_than_three_trainings():
    for few in ([], [np.zeros(4)], [np.zeros(4)] * 2):
        with pytest.raises(UsageError, match=rf"`per_seed` got {len(few)} trainings"):
            pooled(few, np.zeros(4))
    with pytest.raises(AttackError):
        pooled([np.zeros(3)] * 3, np.zeros(4))


def test_the_strongest_training_counts_and_no_end_is_below_its_own():
    rng = np.random.default_rng(0)
    floor = rng.uniform(0.1, 0.5, COUNT)
    per_seed = [floor + (1 - floor) * (v + rng.normal(0, 0.05, COUNT)) for v in (0.1, 0.3, 0.2)]
    got = pooled(per_seed, floor, seed=4)
    alone = [score(s, floor, seed=4) for s in per_seed]
    assert got.values == tuple(s.value for s in alone)
    assert (got.score.value, got.score.raw) == (alone[1].value, alone[1].raw)
    assert got.score.low == alone[1].low  # a leak that one of them proves is proven
    assert got.score.high > alone[1].high
    assert got.spread == pytest.approx(0.1, abs=0.02)


def test_alike_trainings_leave_the_interval_of_the_images():
    s = np.random.default_rng(0).uniform(0, 0.4, COUNT)
    got, alone = pooled([s] * 3, np.zeros(COUNT)), score(s, np.zeros(COUNT))
    assert got.spread == 0
    assert got.score.high == pytest.approx(alone.high, abs=0.002)
    assert got.score.low == alone.low
    flat = pooled([np.full(5, 0.2)] * 3, np.zeros(5))
    assert (flat.score.low, flat.score.high) == pytest.approx((0.2, 0.2))


def test_seeds_alone_give_the_bound_of_one_more_training():
    """Without spread over images it is the textbook's prediction interval, by hand."""
    values = (0.10, 0.12, 0.17)
    got = pooled([np.full(9, v) for v in values], np.zeros(9), scale="raw")
    mean, sd = np.mean(values), np.std(values, ddof=1)
    assert got.another == pytest.approx(mean + student(2) * sd * (1 + 1 / 3) ** 0.5, abs=1e-6)
    assert got.score.high == got.another


def test_noise_between_trainings_widens_the_interval():
    highs = []
    for spread in (0.0, 0.01, 0.05):
        per_seed = trainings(np.random.default_rng(1), 0.3, spread)
        got = pooled(per_seed, np.zeros(COUNT), scale="raw")
        highs.append(got.score.high - np.mean(got.values))
    assert highs[0] < highs[1] < highs[2]
    assert highs[2] > highs[0] + 0.05


@pytest.mark.parametrize(("spread", "images"), [(0.02, 0.02), (0.005, 0.1), (0.05, 0.02)])
def test_the_bound_holds_for_the_next_training_on_all_images(spread, images):
    """Where a plain bootstrap of the mean of three fails far too often."""
    rng = np.random.default_rng(2)
    missed, naive = 0, 0
    runs = 100
    for _ in range(runs):
        per_seed = trainings(rng, 0.4, spread, images=images)
        another = 0.4 + rng.normal(0, spread)
        missed += pooled(per_seed, np.zeros(COUNT), scale="raw").score.high < another
        naive += score(np.mean(per_seed, 0), np.zeros(COUNT), scale="raw").high < another
    assert missed / runs <= 0.06
    if spread > 0.01:
        assert naive / runs > 0.12
