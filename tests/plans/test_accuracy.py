from __future__ import annotations

import pytest
import torch

from partopt.errors import DataError
from partopt.plans.accuracy import accuracy

BATCHES = list(torch.eye(8).split(3))


def shifted(x: torch.Tensor) -> torch.Tensor:
    """Another class for the images of classes 2 and 5."""
    wrong = x.argmax(1).eq(2) | x.argmax(1).eq(5)
    return torch.where(wrong[:, None], x.roll(1, 1), x)


def test_agreement_and_top_1():
    labels = torch.arange(8)
    labels[2] = 3
    labels[7] = 0
    found = accuracy(lambda x: x, shifted, BATCHES, labels)
    assert found.images == 8
    assert found.agreement == 6 / 8
    assert found.before == 6 / 8
    assert found.after == 6 / 8, "class 2 became what its label says, class 5 was lost"
    assert found.drop == 0
    assert accuracy(lambda x: x, shifted, BATCHES).drop == 2 / 8


def test_what_cannot_be_compared_is_refused():
    for network, batches, labels in (
        (lambda x: x, [], None),
        (lambda x: x, BATCHES, torch.arange(7)),
        (lambda x: x[:1], BATCHES, None),
        (lambda x: x * float("nan"), BATCHES, None),
        (lambda x: x[:, :, None], BATCHES, None),
    ):
        with pytest.raises(DataError):
            accuracy(network, network, batches, labels)
