from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from partopt.attackers.base import as_images
from partopt.attackers.scales import (
    ScaledScore,
    of_plain,
    plain,
    scaled,
    score_at,
    sides_of,
    ssim_at,
)
from partopt.attackers.scoring import ssim_of
from partopt.errors import AttackError, ConfigError
from partopt.images.dead_leaves import dead_leaves

SIDE = 128


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    return dead_leaves(12, SIDE, seed=5)


def fine(images: torch.Tensor, strength: float = 0.5) -> torch.Tensor:
    """A pattern over each picture that is gone at half its side."""
    board = torch.ones(SIDE, SIDE)
    board[::2, ::2] = board[1::2, 1::2] = -1
    return (0.2 + 0.6 * images + 0.4 * strength * board).clamp(0, 1)


def attack(photos: np.ndarray, change):
    """Rebuild every picture as `change` of its original, given by its number as a feature."""
    numbers = np.arange(len(photos), dtype=np.float32).reshape(-1, 1, 1, 1)

    def reconstruct(features):
        return change(as_images(photos[features.ravel().astype(int)]))

    return reconstruct, numbers


@pytest.mark.parametrize(
    ("side", "sides"),
    [
        (224, (224, 112)),
        (256, (256, 128, 64)),
        (299, (299, 149, 74)),
        (128, (128, 64)),
        (127, (127,)),
        (96, (96,)),
        (48, (48,)),
        (11, (11,)),
    ],
)
def test_halves_down_to_64_pixels_and_always_the_side_itself(side, sides):
    assert sides_of(side) == sides


def test_pictures_smaller_than_the_window_are_refused():
    with pytest.raises(AttackError, match="at least 11"):
        sides_of(10)


def test_a_copy_scores_one_at_every_side_and_the_own_side_is_the_usual_score(photos):
    copy, numbers = attack(photos, lambda x: x)
    at = ssim_at(copy, numbers, photos, (128, 64, 50))
    assert all(values == pytest.approx(1.0, abs=1e-3) for values in at.values())
    noisy, _ = attack(photos, lambda x: (x + 0.2).clamp(0, 1))
    at = ssim_at(noisy, numbers, photos, sides_of(SIDE), batch=5)
    assert np.array_equal(at[SIDE], ssim_of(noisy, numbers, photos, batch=5))


def test_scaled_pictures_are_antialiased_and_in_range():
    board = fine(torch.full((1, 3, SIDE, SIDE), 0.5), 1.0)
    half = scaled(board, 64)
    assert half.shape == (1, 3, 64, 64)
    assert float(half[..., 4:-4, 4:-4].std()) < 1e-3
    assert float(scaled(torch.eye(SIDE).expand(1, 3, -1, -1), 70).min()) >= 0


def test_a_leak_that_only_the_smaller_size_shows_is_a_leak(photos):
    reconstruct, numbers = attack(photos, fine)
    at = ssim_at(reconstruct, numbers, photos, (128, 64))
    floors = {side: np.full(len(photos), 0.3) for side in at}
    found = score_at(at, floors)
    assert found.by_side[128].high < 0.2 < found.by_side[64].low
    assert found.side == 64
    assert found.strict.low > 0.2
    assert found.strict.value == found.by_side[64].value
    assert found.strict.high == found.by_side[64].high


def test_a_leak_that_only_the_larger_size_shows_is_a_leak():
    """Not every leak grows as pictures shrink: floors differ."""
    sides, count = (128, 64), 40
    rng = np.random.default_rng(0)
    base = rng.uniform(0.4, 0.6, count)
    found = score_at(dict.fromkeys(sides, base), {128: base - 0.3, 64: base - 0.01}, seed=1)
    assert (found.side, found.strict) == (128, found.by_side[128])


def test_each_end_is_the_largest_over_the_sizes():
    """The widest interval need not be at the size with the largest mean."""
    count = 60
    still = np.full(count, 0.30)
    wide = np.tile([0.0, 0.56], count // 2)
    nothing = np.zeros(count)
    found = score_at({128: still, 64: wide}, {128: nothing, 64: nothing})
    assert found.side == 128
    assert found.strict.low == found.by_side[128].low > found.by_side[64].low
    assert found.strict.high == found.by_side[64].high > found.by_side[128].high


def test_every_side_has_its_own_floor():
    per_side = {128: np.full(5, 0.5), 64: np.full(5, 0.5)}
    floors = {128: np.full(5, 0.5), 64: np.full(5, 0.2)}
    found = score_at(per_side, floors)
    assert found.by_side[128].value == 0
    assert found.by_side[64].value == pytest.approx(0.375)
    with pytest.raises(AttackError, match=r"no floor at \[64\]"):
        score_at(per_side, {128: floors[128]})
    with pytest.raises(AttackError, match="no floor"):
        score_at({}, floors)


def test_other_measures_see_each_picture_once_beside_its_rows(photos):
    seen = []
    copy, numbers = attack(photos, lambda x: x * 2)
    ssim_at(copy, numbers, photos, (128,), batch=5, look=lambda i, x: seen.append((i, x)))
    assert [list(i) for i, _ in seen] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    both = torch.cat([x for _, x in seen])
    assert torch.equal(both, (as_images(photos) * 2).clamp(0, 1))


@pytest.mark.parametrize(
    ("change", "sides", "said"),
    [
        (lambda x: x * float("nan"), (128, 64), "not finite"),
        (lambda x: x[..., ::2, ::2], (128, 64), "was wanted"),
        (lambda x: x, (256, 128), "cannot be scored"),
        (lambda x: x, (), "cannot be scored"),
    ],
)
def test_what_cannot_be_scored_is_a_failure(photos, change, sides, said):
    reconstruct, numbers = attack(photos, change)
    with pytest.raises(AttackError, match=said):
        ssim_at(reconstruct, numbers, photos, sides)


def test_scores_survive_json():
    rng = np.random.default_rng(0)
    per_side = {s: rng.uniform(0, 1, 9) for s in (128, 64)}
    found = score_at(per_side, {s: np.full(9, 0.3) for s in per_side})
    again = ScaledScore.of_dict(json.loads(json.dumps(found.as_dict())))
    assert again == found
    assert list(again.by_side) == [128, 64]
    for broken in ({}, None, {"x": {}}, {"64": {"raw": 1}}, {"64": 3}):
        with pytest.raises(ConfigError, match="scores by side"):
            ScaledScore.of_dict(broken)
    values = found.as_dict()
    values["64"]["high"] = float("nan")
    with pytest.raises(ConfigError, match="not finite"):
        ScaledScore.of_dict(values)


def test_what_was_stored_of_fewer_sides_or_images_is_no_result():
    per_side = {128: np.linspace(0, 1, 7), 64: np.linspace(1, 0, 7)}
    stored = json.loads(json.dumps(plain(per_side)))
    back = of_plain(stored, (128, 64), 7)
    assert back is not None
    assert all(back[s] == pytest.approx(per_side[s], abs=1e-6) for s in per_side)
    assert set(of_plain(stored, (64,), 7) or {}) == {64}
    assert of_plain(stored, (128, 64, 32), 7) is None
    assert of_plain(stored, (128, 64), 8) is None
    assert of_plain([1, 2], (128,), 2) is None
    assert of_plain({"128": ["a"] * 7}, (128,), 7) is None
    assert of_plain({"128": [None] * 7}, (128,), 7) is None
