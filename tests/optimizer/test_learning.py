from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from partopt.errors import AttackError, UsageError
from partopt.optimizer.learning import Rung, Terms, extrapolate
from partopt.optimizer.seeds import pooled

COUNT = 120
SIZES = (250, 500, 1000)


def rungs(law, *, images=0.05, own=0.01, seeds=0.0, trainings=3, seed=0, floor=0.3):
    """Scores by a law of the number of images.

    Args:
        law: From images to score, corrected.
        images: Spread over test images, the same at each rung.
        own: Spread over test images that each training has anew.
        seeds: Spread between trainings.
    """
    rng = np.random.default_rng(seed)
    level = rng.normal(0, images, COUNT)
    found = []
    for n in SIZES:
        each = [
            law(n) + rng.normal(0, seeds) + level + rng.normal(0, own, COUNT)
            for _ in range(trainings)
        ]
        found.append(Rung(n, floor + (1 - floor) * np.array(each)))
    return found, np.full(COUNT, floor)


def ends(law, threshold=0.2, **how):
    terms = {k: how.pop(k) for k in ("adversary", "spread", "scale") if k in how}
    return extrapolate(*rungs(law, **how), Terms(threshold, resamples=600, **terms))


def test_a_flat_curve_ends_below():
    got = ends(lambda n: 0.12)
    assert got.below
    assert (got.images, got.settles, got.accelerating) == (10_000, None, False)
    assert got.value == pytest.approx(0.12, abs=0.02)
    assert 0.12 < got.high < 0.17
    assert "at most 0.1" in got.reason
    assert "which is below 0.2" in got.reason


def test_a_curve_that_crosses_at_ten_times_the_data_is_not_below():
    """Well below at what was measured, its interval too."""
    got = ends(lambda n: 0.10 + 0.04 * math.log10(n / 250) / math.log10(4) * 2)
    assert all(p.high < 0.2 for p in got.points)
    assert got.value > 0.2
    assert not got.below
    assert "still learns" in got.reason
    assert f"a run with {got.settles} images would settle it" in got.reason
    assert 1000 < got.settles < 10_000


def test_what_settles_it_is_where_the_bound_crosses():
    law = lambda n: 0.05 + 0.02 * math.log2(n / 250)  # noqa: E731
    still = ends(law, images=0.0, own=0.0, threshold=0.15)
    # 0.09 at 1000 and 0.02 a doubling: 0.15 three doublings later.
    assert still.value == pytest.approx(0.09 + 0.02 * math.log2(10), abs=1e-6)
    assert still.settles == pytest.approx(8000, rel=0.02)
    at_most = ends(law, images=0.0, own=0.0, threshold=0.15, adversary=still.settles - 100)
    assert at_most.below
    assert at_most.images == still.settles - 100


@pytest.mark.parametrize("c", [0.05, 0.2, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("times", [2, 10, 100])
def test_no_power_law_passes_the_bound(c, times):
    law = lambda n: 0.3 - 0.2 * (n / 250) ** -c  # noqa: E731
    got = ends(law, images=0.0, own=0.0, adversary=1000 * times)
    assert got.high >= law(1000 * times) - 1e-9


@pytest.mark.parametrize("shape", ["line", "square"])
def test_the_bound_holds_for_curves_of_a_known_law(shape):
    power = {"line": 1, "square": 2}[shape]
    law = lambda n: 0.04 + 0.01 * math.log2(n / 125) ** power  # noqa: E731
    missed = sum(ends(law, seed=i, seeds=0.004, images=0.0).high < law(10_000) for i in range(25))
    assert missed <= 2


def test_learning_that_grows_faster_is_carried_on():
    law = lambda n: 0.02 + 0.01 * math.log2(n / 125) ** 2  # noqa: E731
    got = ends(law, images=0.0, own=0.001)
    assert got.accelerating
    assert got.value == pytest.approx(law(10_000), abs=0.01)
    assert got.value > law(1000) + (law(1000) - law(500)) * math.log2(10) + 0.05
    assert "learning faster" in got.reason
    # One that slows down is not bent upwards.
    assert not ends(lambda n: 0.2 - 20 / n, images=0.0, own=0.001).accelerating


def test_a_last_step_that_fell_short_does_not_end_the_curve():
    by_size = {250: 0.06, 500: 0.12, 1000: 0.12}
    got = ends(by_size.__getitem__, images=0.0, own=0.0)
    # The line by least squares: 0.1 in the middle, 0.03 a doubling.
    assert got.value == pytest.approx(0.1 + 0.03 * (1 + math.log2(10)), abs=1e-6)
    assert not got.below


def test_a_last_step_that_is_the_largest_goes_on_though_it_may_be_noise():
    by_size = {250: 0.10, 500: 0.10, 1000: 0.12}
    got = ends(by_size.__getitem__, images=0.0, own=0.0, spread=0.02)
    assert not got.accelerating
    assert got.value == pytest.approx(0.12 + 0.02 * math.log2(10), abs=1e-6)


def test_falling_curves_count_as_flat():
    by_size = {250: 0.12, 500: 0.10, 1000: 0.08}
    got = ends(by_size.__getitem__, images=0.0, own=0.0)
    assert got.value == pytest.approx(0.12)
    assert got.high >= 0.12


def test_never_below_the_largest_upper_end_that_was_measured():
    by_size = {250: 0.24, 500: 0.10, 1000: 0.08}
    got = ends(by_size.__getitem__, images=0.3)
    made, floor = rungs(by_size.__getitem__, images=0.3)
    worst = pooled(made[0].trainings, floor).score
    assert got.points[0].high == pytest.approx(worst.high)
    assert got.high >= max(p.high for p in got.points) == got.points[0].high
    assert not got.below
    # However few images the adversary is said to have.
    fewer = ends(by_size.__getitem__, images=0.3, adversary=10)
    assert fewer.images == 1000
    assert fewer.high >= fewer.points[0].high


def test_what_reaches_the_threshold_already_says_so():
    got = ends(lambda n: 0.19, images=0.2)
    assert got.settles == 1000
    assert "with 1000 images already" in got.reason


@pytest.mark.parametrize("noise", ["own", "images", "seeds"])
def test_noise_widens_the_bound(noise):
    highs = [
        ends(lambda n: 0.1, threshold=9, **{"images": 0.0, "own": 0.0, noise: spread}).high
        for spread in (0.0, 0.02, 0.1)
    ]
    assert highs[0] < highs[1] < highs[2]
    assert highs[0] == pytest.approx(0.1, abs=1e-6)


def test_test_images_are_drawn_together_for_all_sizes():
    """Images differ much, but each learns alike: the slope is sure, whatever images are drawn."""
    made, floor = rungs(lambda n: 0.1, images=0.3, own=0.0)
    shuffled = [
        replace(r, per_image=r.per_image[:, np.random.default_rng(i).permutation(COUNT)])
        for i, r in enumerate(made)
    ]
    terms = Terms(9, resamples=600)
    together, apart = extrapolate(made, floor, terms), extrapolate(shuffled, floor, terms)
    assert together.points[-1].value == pytest.approx(apart.points[-1].value)
    assert together.high < together.points[-1].high + 0.01
    assert apart.high > together.high + 0.05


def test_floors_are_drawn_with_the_images():
    floor = np.random.default_rng(0).uniform(0, 0.8, COUNT)
    same = [Rung(n, np.stack([1 - 0.9 * (1 - floor)] * 3)) for n in SIZES]
    got = extrapolate(same, floor, Terms(0.2, resamples=300))
    assert (got.value, got.high) == pytest.approx((0.1, 0.1))


def test_spread_between_trainings_must_be_known():
    made, floor = rungs(lambda n: 0.1, trainings=1)
    with pytest.raises(UsageError, match="one training for each"):
        extrapolate(made, floor, Terms(0.2))
    known = extrapolate(made, floor, Terms(0.2, spread=0.0))
    wider = extrapolate(made, floor, Terms(0.2, spread=0.02))
    assert known.high + 0.03 < wider.high
    with pytest.raises(UsageError, match="`spread` got -1"):
        extrapolate(made, floor, Terms(0.2, spread=-1.0))
    # From one rung with several seeds, as a verdict has them at all images.
    several = rungs(lambda n: 0.1, seeds=0.02, seed=3)[0][-1]
    assert extrapolate([*made[:2], several], floor, Terms(0.2)).high > known.high


@pytest.mark.parametrize("sizes", [(250, 500), (250, 500, 500), (500, 500, 500), ()])
def test_too_few_points_are_refused(sizes):
    made = [Rung(n, np.zeros((3, 5))) for n in sizes]
    with pytest.raises(UsageError, match="`rungs` got"):
        extrapolate(made, np.zeros(5), Terms(0.2))


def test_other_images_than_the_floors_are_refused():
    made = [Rung(n, np.zeros((3, 5))) for n in SIZES]
    with pytest.raises(AttackError, match="held against a floor"):
        extrapolate(made, np.zeros(6), Terms(0.2))
    broken = [Rung(n, np.full((3, 5), np.nan)) for n in SIZES]
    with pytest.raises(AttackError, match="finite"):
        extrapolate(broken, np.zeros(5), Terms(0.2))


def test_order_does_not_matter():
    made, floor = rungs(lambda n: 0.02 * math.log2(n / 125))
    terms = Terms(0.2, resamples=300)
    got = extrapolate(made, floor, terms)
    assert extrapolate(made[::-1], floor, terms) == got
