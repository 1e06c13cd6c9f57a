import math

import numpy as np
import pytest

from partopt.attackers.intervals import beta_cdf, clopper_pearson, student
from partopt.errors import UsageError


def _tail(n: int, k: int, p: float) -> float:
    """P(X >= k) of a binomial, by its definition."""
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        # Published tables, and R's binom.test.
        (0, 10, 0.0, 0.3084971),
        (1, 10, 0.002528579, 0.4450161),
        (5, 20, 0.08657147, 0.4910459),
        (10, 100, 0.04900469, 0.1762226),
        (10, 10, 0.6915029, 1.0),
    ],
)
def test_shares_against_known_values(hits, trials, low, high):
    assert clopper_pearson(hits, trials) == pytest.approx((low, high), abs=2e-7)


@pytest.mark.parametrize(("hits", "trials"), [(1, 60), (37, 250), (299, 300), (1, 2), (600, 601)])
def test_the_ends_leave_what_they_say_by_the_definition(hits, trials):
    low, high = clopper_pearson(hits, trials)
    assert _tail(trials, hits, low) == pytest.approx(0.025, abs=1e-9)
    assert 1 - _tail(trials, hits + 1, high) == pytest.approx(0.025, abs=1e-9)


def test_the_share_is_missed_at_each_end_in_one_case_of_forty_at_most():
    drawn = np.random.default_rng(0).binomial(80, 0.06, 4000)
    ends = {k: clopper_pearson(int(k), 80) for k in np.unique(drawn)}
    assert np.mean([ends[k][1] < 0.06 for k in drawn]) <= 0.03
    assert np.mean([ends[k][0] > 0.06 for k in drawn]) <= 0.03


def test_other_levels_and_what_is_no_share():
    assert clopper_pearson(3, 10, 0.99)[1] > clopper_pearson(3, 10)[1]
    for hits, trials in ((0, 0), (-1, 4), (5, 4)):
        with pytest.raises(UsageError, match="`hits`"):
            clopper_pearson(hits, trials)


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.7062), (2, 4.302653), (5, 2.570582), (30, 2.042272)]
)
def test_student_against_the_table(freedom, t):
    assert student(freedom) == pytest.approx(t, abs=1e-4)


def test_student_between_and_at_the_ends():
    assert student(2) > student(2.5) > student(3)
    assert student(math.inf) == pytest.approx(1.959964, abs=1e-4)
    with pytest.raises(UsageError, match="`freedom`"):
        student(0)


def test_beta_is_symmetric_and_grows():
    for x in (0.0, 0.01, 0.3, 0.77, 1.0):
        assert beta_cdf(x, 2.5, 7) == pytest.approx(1 - beta_cdf(1 - x, 7, 2.5), abs=1e-12)
    assert beta_cdf(0.5, 1, 1) == pytest.approx(0.5)
    values = [beta_cdf(x, 300, 40) for x in np.linspace(0.8, 0.95, 20)]
    assert values == sorted(values)
