import pytest

from partopt.attackers.scoring import Score
from partopt.config import Attack
from partopt.optimizer.limits import Doubt
from partopt.optimizer.rule import Cover, Evidence, judge

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


def covered(found, cuts=(1, 2, 3), **more):
    more.setdefault("cover", Cover(cuts, ["linear"]))
    return judge(NAMES, PANEL, found, 0.2, **more)


def one_in_full(high=0.15):
    found = evidence(a=(0.1, high), b=(0.05, 0.1), c=(0, 0.1), d=(0, 0.01))
    for i in (1, 2, 3):
        del found[i, "decoder"]
    return found


def test_a_cut_attacked_in_full_stands_for_later_ones():
    verdicts = covered(one_in_full())
    assert [v.status for v in verdicts] == ["safe"] * 4
    assert [v.covered_by for v in verdicts] == ["", "a", "a", "a"]
    assert [v.complete for v in verdicts] == [True, False, False, False]
    assert [v.suffix_high for v in verdicts] == [0.15] * 4, "they may leak as much as it does"
    assert verdicts[3].high == 0.01, "what was measured there"
    assert "a, from which this is computed" in verdicts[1].reason


def test_the_nearest_earlier_one_stands():
    found = one_in_full(high=0.3)
    assert [v.safe for v in covered(found)] == [False] * 4
    found[1, "decoder"] = e(0.05, 0.12)
    verdicts = covered(found)
    assert [v.safe for v in verdicts] == [False, True, True, True]
    assert [v.covered_by for v in verdicts] == ["", "", "b", "b"]


def test_only_cuts_that_are_named_are_stood_for():
    assert [v.status for v in covered(one_in_full(), cuts=(1, 3))] == [
        "undecided",
        "undecided",
        "not attacked",
        "safe",
    ]


@pytest.mark.parametrize("there", [None, Evidence(None, False), e(0.0, 0.05, complete=False)])
def test_cheap_attackers_must_have_run_where_another_stands(there):
    found = one_in_full()
    del found[2, "linear"]
    if there is not None:
        found[2, "linear"] = there
    assert [v.safe for v in covered(found)] == [False, False, False, True]


def test_what_failed_or_leaks_where_another_stands_counts():
    found = one_in_full()
    found[2, "decoder"] = Evidence(None, False)
    assert [v.safe for v in covered(found)] == [False, False, False, True]
    found = one_in_full()
    found[2, "linear"] = e(0.15, 0.25)
    assert [v.safe for v in covered(found)] == [False, False, False, True]


def test_nothing_stands_where_places_are_unknown():
    verdicts = covered(one_in_full(), unplaced={2: "why"})
    assert [v.safe for v in verdicts] == [False, False, False, True]


def test_what_is_doubtful_where_a_cut_stands_is_doubtful_where_it_stands_for():
    found = one_in_full()
    verdicts = covered(found, doubts={0: Doubt("it still learns")})
    assert [v.status for v in verdicts] == ["undecided"] * 4
    assert "at a it still learns" in verdicts[3].reason
    shown = Evidence(found[0, "decoder"].score, True, "decoder")
    verdicts = covered(found | {(0, "decoder"): shown})
    assert [v.status for v in verdicts] == ["undecided"] * 4
    assert "decoder at a was still rising" in verdicts[3].reason
