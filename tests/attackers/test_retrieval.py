from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from partopt.attackers.base import as_images
from partopt.attackers.retrieval import Identified, Lineup, identify
from partopt.errors import AttackError, ConfigError
from partopt.images.dead_leaves import dead_leaves


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    return dead_leaves(50, 48, seed=11)


def _by_hand(rebuilt: torch.Tensor, photos: np.ndarray, size: int) -> int:
    """Picture by picture, with numpy's correlation."""

    def at(images: torch.Tensor) -> np.ndarray:
        small = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return small.clamp(0, 1).flatten(1).double().numpy()

    found, truth, ours = 0, at(as_images(photos)), at(rebuilt)
    for i in range(len(ours)):
        alike = [np.corrcoef(ours[i], other)[0, 1] for other in truth]
        found += int(np.argmax(alike)) == i
    return found


def test_against_one_written_by_hand(photos):
    noise = torch.randn(50, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    rebuilt = (0.5 + 0.03 * (as_images(photos) - 0.5) + 0.4 * noise).clamp(0, 1)
    found = identify(rebuilt, photos)
    for size in (8, 16, 32):
        assert found.by_reading[f"{size} plain"] == _by_hand(rebuilt, photos, size)
    assert 1 < found.by_reading["8 plain"] < 50
    assert found.found == max(found.by_reading.values())
    assert found.by_reading[found.reading] == found.found


def test_copies_are_all_found_and_their_bounds_are_exact(photos):
    found = identify(as_images(photos), photos)
    assert (found.found, found.share, found.high) == (50, 1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 50))
    assert found.chance == 0.02
    assert set(found.by_reading) == {
        f"{size} {how}" for size in (8, 16, 32, 48) for how in ("plain", "centred")
    }


def test_pictures_of_others_are_not_found(photos):
    assert identify(as_images(photos).roll(1, 0), photos).found == 0


def test_what_shows_nothing_finds_at_most_one(photos):
    for level in (0.0, 0.5):
        assert identify(torch.full((50, 3, 48, 48), level), photos).found == 0
    same = as_images(photos[:1]).expand(50, -1, -1, -1)
    assert identify(same, photos).by_reading["8 plain"] == 1
    assert identify(same, photos).by_reading["8 centred"] <= 1


def test_the_reading_that_finds_the_most_counts(photos):
    """Only fine detail, then only what differs from one common picture, tells the photos apart."""
    x = as_images(photos)
    coarse = F.interpolate(F.interpolate(x, (8, 8), mode="bilinear", antialias=True), (48, 48))
    mixed = (0.5 + 0.5 * (x - coarse) + 0.5 * (coarse - 0.5).roll(1, 0)).clamp(0, 1)
    found = identify(mixed, photos)
    assert found.by_reading["8 plain"] < found.found
    faint = (0.9 * x[:1] + 0.002 * x).clamp(0, 1)
    found = identify(faint, photos)
    assert found.by_reading["48 plain"] < 5
    assert found.found == found.by_reading["48 centred"] > 45
    assert "centred" in found.reading


def test_a_photo_that_is_there_twice_is_found_as_either(photos):
    twice = np.concatenate([photos[:10], photos[:10]])
    assert identify(as_images(twice), twice).found == 20


def test_batches_of_any_size_and_missing_ones(photos):
    x = as_images(photos).flip(-1)
    whole, lineup = identify(x, photos), Lineup(photos)
    for start in range(0, 50, 7):
        lineup.add(range(start, min(start + 7, 50)), x[start : start + 7])
    assert lineup.result() == whole == lineup.result()
    lineup = Lineup(photos)
    lineup.add(range(10), x[:10])
    with pytest.raises(AttackError, match="40 of 50 photos have no reconstruction"):
        lineup.result()
    with pytest.raises(AttackError, match="not finite"):
        identify(x * float("inf"), photos)
    with pytest.raises(AttackError, match="cannot be told apart"):
        Lineup(photos[:1])


def test_it_survives_json_and_its_bounds_are_computed_anew(photos):
    found = identify(as_images(photos), photos)
    values = json.loads(json.dumps(found.as_dict()))
    assert Identified.of_dict(values) == found
    assert Identified.of_dict({**values, "high": 0.0, "found": 1}) == found
    for broken in ({}, None, {**values, "images": 0}, {**values, "by_reading": {}}):
        with pytest.raises(ConfigError, match="retrieval"):
            Identified.of_dict(broken)
