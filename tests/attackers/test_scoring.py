import random

import numpy as np
import pytest
import torch

from partopt.attackers.base import checked
from partopt.attackers.blind import Blind
from partopt.attackers.fast_ssim import fast_ssim
from partopt.attackers.scoring import corrected, score, ssim, ssim_of
from partopt.errors import AttackError


def _direct_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM by the definition: a Gaussian window slid over every position."""
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    g /= g.sum()
    w = np.outer(g, g)
    values = []
    for c in range(a.shape[0]):
        for y in range(a.shape[1] - 10):
            for x in range(a.shape[2] - 10):
                p, q = a[c, y : y + 11, x : x + 11], b[c, y : y + 11, x : x + 11]
                mp, mq = (w * p).sum(), (w * q).sum()
                vp, vq = (w * p * p).sum() - mp**2, (w * q * q).sum() - mq**2
                cov = (w * p * q).sum() - mp * mq
                values.append(
                    (2 * mp * mq + 1e-4)
                    * (2 * cov + 9e-4)
                    / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))
                )
    return float(np.mean(values))


def test_ssim_against_the_definition(leaves):
    a = leaves[:3, :, :24, :24].astype(np.float64) / 255
    rng = np.random.default_rng(0)
    b = np.clip(a + rng.normal(0, 0.1, a.shape), 0, 1)
    want = [_direct_ssim(x, y) for x, y in zip(a, b, strict=True)]
    ta, tb = torch.from_numpy(a).float(), torch.from_numpy(b).float()
    assert ssim(ta, tb).numpy() == pytest.approx(want, abs=1e-4)
    assert fast_ssim(ta, tb).numpy() == pytest.approx(want, abs=1e-4)


def test_corrected_scale():
    assert corrected(0.35, 0.35) == 0
    assert corrected(1.0, 0.35) == 1
    assert corrected(0.1, 0.35) == 0
    assert corrected(0.675, 0.35) == pytest.approx(0.5)


def test_interval_covers_the_mean_and_shrinks_with_images():
    rng = np.random.default_rng(0)
    floor = rng.uniform(0.2, 0.4, 400)
    s = np.clip(floor + rng.normal(0.2, 0.1, 400), 0, 1)
    many, few = score(s, floor), score(s[:40], floor[:40])
    assert many.low < many.value < many.high
    assert many.high - many.low < few.high - few.low
    assert score(s, floor) == many
    raw = score(s, floor, scale="raw")
    assert raw.value == pytest.approx(s.mean())
    assert raw.largest == s.max()


def test_the_floor_is_resampled_with_the_images():
    """An attacker that is the floor plus a constant has no spread that is not the floor's."""
    floor = np.random.default_rng(0).uniform(0.0, 0.8, 60)
    blind = score(floor, floor)
    assert (blind.low, blind.value, blind.high) == (0, 0, 0)
    near = score(1 - 0.5 * (1 - floor), floor)  # on the corrected scale 0.5, whatever is drawn
    assert (near.low, near.high) == pytest.approx((0.5, 0.5))


def _bootstrap(per_image, floor, draws, paired=True):
    """Value by value: what each resample gives, and the interval by hand."""
    found = []
    for r, drawn in enumerate(draws):
        other = drawn if paired else draws[r - 1]
        s = sum(per_image[i] for i in drawn) / len(drawn)
        f = sum(floor[i] for i in other) / len(other)
        found.append(max(0.0, (s - f) / (1 - f)))
    found.sort()

    def quantile(q):
        place = q * (len(found) - 1)
        below = int(place)
        above = min(below + 1, len(found) - 1)
        return found[below] + (place - below) * (found[above] - found[below])

    return quantile(0.025), quantile(0.975)


def test_the_bootstrap_against_one_written_by_hand():
    """Images and their floors are drawn together: floors drawn on their own are another answer."""
    rng = np.random.default_rng(3)
    floor = rng.uniform(0.05, 0.75, 70)
    s = floor + (1 - floor) * rng.uniform(0.1, 0.3, 70)
    got = score(s, floor, seed=11, resamples=400)
    same = np.random.default_rng(11).integers(0, 70, (400, 70)).tolist()
    assert (got.low, got.high) == pytest.approx(_bootstrap(s, floor, same), abs=1e-12)
    # With other draws the same interval, up to what 1000 of them leave open.
    draw = random.Random(5)
    others = [[draw.randrange(70) for _ in range(70)] for _ in range(1000)]
    full = score(s, floor, seed=11)
    low, high = _bootstrap(s, floor, others)
    assert (full.low, full.high) == pytest.approx((low, high), abs=0.004)
    apart = _bootstrap(s, floor, others, paired=False)
    assert apart[1] - apart[0] > 2 * (high - low)
    assert apart[1] - apart[0] > 2 * (full.high - full.low)


def test_the_images_that_leak_most_are_told_from_the_mean():
    s = np.linspace(0, 1, 101)
    got = score(s, np.zeros(101))
    assert (got.raw, got.p95, got.largest) == pytest.approx((0.5, 0.95, 1.0))


def test_interval_coverage():
    """About 95 of 100 intervals hold the true mean."""
    rng = np.random.default_rng(1)
    hits = 0
    for i in range(200):
        s = rng.beta(4, 8, 80)
        got = score(s, np.zeros(80), scale="raw", seed=i, resamples=400)
        hits += got.low <= 1 / 3 <= got.high
    assert 180 <= hits <= 199


def test_a_floor_of_other_images_is_refused():
    with pytest.raises(AttackError):
        score(np.zeros(3), np.zeros(4))


def test_what_is_not_finite_is_a_failure(leaves):
    def broken(features):
        return torch.full((len(features), 3, 48, 48), float("nan"))

    with pytest.raises(AttackError, match="not finite"):
        ssim_of(broken, np.zeros((2, 1)), leaves[:2])


def test_data_range_does_not_follow_the_attacker(leaves):
    """A reconstruction scaled far out of range is clamped, not rescaled."""
    images = leaves[:4]

    def loud(features):
        return torch.from_numpy(images.astype(np.float32)) / 255 * 100

    assert ssim_of(loud, np.zeros((4, 1)), images).mean() < 0.9


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_picture_that_is_not_finite_is_a_failure_not_a_bad_picture(value):
    """Clamped, an infinite pixel would be a white one: divergence would look like protection."""
    rebuilt = torch.zeros(2, 3, 4, 4)
    rebuilt[1, 2, 3, 3] = value
    with pytest.raises(AttackError, match="not finite"):
        checked(rebuilt, Blind())
