"""Hashes that evidence is keyed by, and seeds."""

import pytest
import torch

from partopt.hashing import derive_seed, hash_state

STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(4)}


@pytest.mark.parametrize(
    "other",
    [
        {**STATE, "a": STATE["a"] + 1e-6},
        {**STATE, "a": STATE["a"].view(3, 2)},
        {**STATE, "b": torch.zeros(4, dtype=torch.int32)},
        {"a": STATE["a"], "c": STATE["b"]},
        {"a": STATE["a"]},
    ],
    ids=["value", "shape", "dtype", "name", "missing"],
)
def test_weights_that_differ_at_all_have_another_hash(other):
    assert hash_state(other) != hash_state(STATE)


def test_the_order_and_the_layout_of_weights_make_no_difference():
    transposed = STATE["a"].t().contiguous().t()
    assert not transposed.is_contiguous()
    assert hash_state({"b": STATE["b"], "a": transposed}) == hash_state(STATE)


def test_a_seed_depends_on_the_users_and_on_what_it_is_for():
    seeds = [derive_seed(s, *parts) for s in (0, 1) for parts in ((), ("a",), ("b",), ("a", "b"))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**31 for s in seeds)
    assert derive_seed(7, "a") == derive_seed(7, "a")
