import pytest

from partopt.attackers.scoring import Score
from partopt.config import Attack
from partopt.optimizer.rule import Evidence, judge

NAMES = ["a", "b", "c", "d"]
PANEL = ["linear", "decoder"]


def e(low: float, high: float, complete: bool = True) -> Evidence:
    mid = (low + high) / 2
    return Evidence(Score(mid, mid, mid, mid, low, high, "corrected"), complete)


def evidence(**cuts):
    return {(NAMES.index(n), a): e(*v) for n, v in cuts.items() for a in PANEL}


def statuses(found, threshold=0.2):
    return [v.status for v in judge(NAMES, PANEL, found, threshold)]


def test_all_below_is_safe():
    found = evidence(a=(0.1, 0.15), b=(0.05, 0.1), c=(0, 0.1), d=(0, 0.01))
    assert statuses(found) == ["safe"] * 4


def test_a_later_leak_leaks_everywhere_before():
    found = evidence(a=(0, 0.1), b=(0, 0.1), c=(0.3, 0.4), d=(0, 0.1))
    assert statuses(found) == ["leaks", "leaks", "leaks", "safe"]
    verdicts = judge(NAMES, PANEL, found, 0.2)
    assert verdicts[0].reason == "proven at a later cut"
    assert verdicts[0].suffix_value == pytest.approx(0.35)


def test_the_upper_end_of_the_interval_counts():
    found = evidence(a=(0, 0.1), b=(0.15, 0.21), c=(0, 0.1), d=(0, 0.1))
    assert statuses(found) == ["undecided", "undecided", "safe", "safe"]
    assert "at b" in judge(NAMES, PANEL, found, 0.2)[0].reason


def test_exactly_the_threshold_is_not_below_it():
    found = evidence(a=(0, 0.1), b=(0, 0.1), c=(0, 0.1), d=(0.1, 0.2))
    assert "safe" not in statuses(found)


def test_missing_evidence_counts_as_leaking_here_and_before():
    found = evidence(a=(0, 0.1), b=(0, 0.1), c=(0, 0.1), d=(0, 0.1))
    del found[2, "decoder"]
    assert statuses(found) == ["undecided", "undecided", "not attacked", "safe"]
    assert statuses({}) == ["not attacked"] * 4


def test_a_failed_attack_counts_as_leaking():
    found = evidence(a=(0, 0.1), b=(0, 0.1), c=(0, 0.1), d=(0, 0.1))
    found[3, "decoder"] = Evidence(None, False)
    assert statuses(found) == ["undecided", "undecided", "undecided", "failed"]


def test_an_attack_cut_short_never_protects():
    found = evidence(a=(0, 0.1), b=(0, 0.1), c=(0, 0.1), d=(0, 0.1))
    found[3, "decoder"] = e(0, 0.1, complete=False)
    assert "safe" not in statuses(found)


def test_the_strongest_attacker_decides():
    found = evidence(a=(0, 0.1), b=(0, 0.1), c=(0, 0.1), d=(0, 0.1))
    found[3, "decoder"] = e(0.5, 0.6)
    assert statuses(found) == ["leaks"] * 4


@pytest.mark.parametrize("outcome", ["stopped at proof", "failed"])
def test_a_recorded_attack_counts_only_if_it_ran_to_the_end(outcome):
    low = {"attacker": "linear", "settings": "", "score": 0.05, "low": 0.0, "high": 0.1}
    ran = {(0, "linear"): Evidence.of(Attack(**low, outcome="full budget"), "corrected")}
    short = {(0, "linear"): Evidence.of(Attack(**low, outcome=outcome), "corrected")}
    assert judge(["a"], ["linear"], ran, 0.2)[0].safe
    assert not judge(["a"], ["linear"], short, 0.2)[0].safe


def test_a_proof_at_exactly_the_threshold_leaks():
    found = evidence(a=(0, 0.1), b=(0, 0.1), c=(0.2, 0.3), d=(0, 0.1))
    assert statuses(found) == ["leaks", "leaks", "leaks", "safe"]


def test_where_places_are_unknown_only_a_leak_is_proven():
    """Low scores of attackers that were given values in no order settle nothing, here or before."""
    found = evidence(a=(0, 0.1), b=(0, 0.1), c=(0, 0.1), d=(0, 0.1))
    verdicts = judge(NAMES, PANEL, found, 0.2, unplaced={2: "scattered"})
    assert [v.status for v in verdicts] == ["undecided", "undecided", "undecided", "safe"]
    assert "where its values lie in the picture could not be told (scattered)" in verdicts[2].reason
    assert verdicts[2].unplaced == "scattered"
    leaking = evidence(a=(0, 0.1), b=(0, 0.1), c=(0.3, 0.4), d=(0, 0.1))
    assert judge(NAMES, PANEL, leaking, 0.2, unplaced={2: "scattered"})[2].status == "leaks"
