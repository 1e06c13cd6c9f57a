"""A mean below the threshold is not enough where single images are not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from partopt.config import Attack
from partopt.errors import UsageError
from partopt.optimizer.limits import Doubt, Held, Limits
from partopt.optimizer.rule import Evidence, Grant, judge

CALM = Attack(
    attacker="linear",
    settings="Linear()",
    outcome="full budget",
    score=0.05,
    low=0.04,
    high=0.06,
    over=3,
    over_high=0.1,
    largest=0.5,
    retrieved=30,
    retrieved_high=0.4,
)


def held(limits=None, scale="corrected", threshold=0.2):
    return Held(limits=limits or Limits(), threshold=threshold, scale=scale, images=100)


def status(attack, limits=None, grant=None):
    """Of the cut itself and of the one before it."""
    calm = {(i, "linear"): Evidence.of(CALM, "corrected") for i in range(2)}
    doubt = held(limits).doubt([attack])
    doubts = {} if doubt is None else {1: doubt}
    return judge(["a", "b"], ["linear"], calm, 0.2, grant, doubts=doubts)


def test_one_image_that_is_copied_ends_as_a_leak_in_one_sentence():
    copied = CALM.model_copy(update={"largest": 0.99})
    for grant in (None, Grant("screened", "a screening")):
        before, here = status(copied, grant=grant)
        assert (before.status, here.status) == ("leaks", "leaks")
        assert here.reason == before.reason
    assert here.reason == (
        "at b linear rebuilt one test image as good as perfectly (its own score is 0.99), "
        "whatever the mean is"
    )
    assert [v.status for v in status(CALM)] == ["safe", "safe"]
    off = Limits(copies=False)
    assert [v.status for v in status(copied, off)] == ["safe", "safe"]


def test_a_copy_is_above_the_threshold_too():
    copied = CALM.model_copy(update={"largest": 0.92})
    assert held().doubt([copied]) is not None
    assert held(threshold=0.95).doubt([copied]) is None
    assert held(scale="raw").doubt([copied]) is None, "a flat picture has that"


@pytest.mark.parametrize(
    ("limits", "wanted", "part"),
    [
        (Limits(worst_share=0.05), "undecided", "3 of 100 test images reach 0.2 on their own"),
        (Limits(worst_share=0.1), "safe", ""),
        (Limits(worst_share=0.005), "leaks", "--worst-share allows 0.5%"),
        (Limits(worst_retrieval=0.05), "leaks", "30 of 100 test images are picked out"),
        (Limits(worst_retrieval=0.35), "undecided", "at most 40.0% of all images"),
        (Limits(worst_retrieval=0.5), "safe", ""),
    ],
)
def test_limits_hold_by_their_exact_bounds(limits, wanted, part):
    attack = CALM.model_copy(update={"retrieved": 30})
    for verdict in status(attack, limits):
        assert verdict.status == wanted
        assert part in verdict.reason


def test_a_limit_that_nobody_counted_for_is_not_kept():
    uncounted = CALM.model_copy(update={"over": None, "retrieved": None})
    for limits in (Limits(worst_share=1.0), Limits(worst_retrieval=1.0)):
        assert "nobody counted" in held(limits).doubt([uncounted]).reason
    failed = Attack(attacker="linear", settings="", outcome="failed")
    assert held(Limits(worst_share=0.1)).doubt([failed]) is None, "the rule knows"


def test_a_proven_doubt_goes_before_one_that_is_not():
    calm = {(i, "linear"): Evidence.of(CALM, "corrected") for i in range(3)}
    doubts = {1: Doubt("may leak"), 2: Doubt("leaks", True)}
    found = judge(["a", "b", "c"], ["linear"], calm, 0.2, doubts=doubts)
    assert [v.status for v in found] == ["leaks"] * 3
    doubts = {1: Doubt("leaks", True), 2: Doubt("may leak")}
    found = judge(["a", "b", "c"], ["linear"], calm, 0.2, doubts=doubts)
    assert [v.status for v in found] == ["leaks", "leaks", "undecided"]


@pytest.mark.parametrize("value", [0.0, -0.1, 1.5, float("nan")])
def test_limits_outside_their_range_are_refused(value):
    for name in ("worst_share", "worst_retrieval"):
        with pytest.raises(UsageError, match=f"`{name}` got"):
            replace(Limits(), **{name: value})
