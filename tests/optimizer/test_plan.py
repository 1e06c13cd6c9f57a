import pytest
from hypothesis import given
from hypothesis import strategies as st

from partopt.attackers.scoring import Score
from partopt.optimizer.limits import Doubt
from partopt.optimizer.plan import Halving, Plan
from partopt.optimizer.rule import Evidence, judge

NAMES = [f"c{i}" for i in range(8)]
RANKS = {"linear": 1, "decoder": 2}


def walk(truth, could_win=lambda safe, i: True, threshold=0.2):
    """Follow the plan; `truth` maps (cut, attacker) to (low, high)."""
    plan = Plan(NAMES, RANKS, threshold, could_win)
    found, order = {}, []
    while (job := plan.next(found)) is not None:
        low, high = truth[job]
        found[job] = Evidence(Score(low, low, low, low, low, high, "corrected"), True)
        order.append(job)
        assert len(order) <= 16
    return plan, found, order


def truth_of(linear, decoder):
    t = {(i, "linear"): (v, v + 0.02) for i, v in enumerate(linear)}
    return t | {(i, "decoder"): (v, v + 0.02) for i, v in enumerate(decoder)}


FALLING = [0.9, 0.8, 0.6, 0.4, 0.15, 0.1, 0.05, 0.01]


def test_cheap_first_then_backwards_until_the_first_leak():
    decoder = [0.95, 0.9, 0.7, 0.5, 0.3, 0.12, 0.06, 0.02]
    _, _, order = walk(truth_of(FALLING, decoder))
    assert order[:8] == [(i, "linear") for i in range(7, -1, -1)]
    assert order[8:] == [(7, "decoder"), (6, "decoder"), (5, "decoder"), (4, "decoder")]


def test_the_walk_ends_at_a_cut_that_straddles_the_threshold():
    decoder = [0.95, 0.9, 0.7, 0.5, 0.3, 0.19, 0.06, 0.02]
    _, found, order = walk(truth_of(FALLING, decoder))
    assert order[-1] == (5, "decoder")
    assert [v.safe for v in judge(NAMES, list(RANKS), found, 0.2)] == [False] * 6 + [True] * 2


def test_cuts_that_cannot_win_are_not_attacked():
    decoder = [v + 0.01 for v in FALLING]
    _, _, order = walk(truth_of(FALLING, decoder), lambda safe, i: not safe or i >= 6)
    assert [j for j in order if j[1] == "decoder"] == [(7, "decoder"), (6, "decoder")]


def test_other_workers_get_the_cut_before():
    plan = Plan(NAMES, RANKS, 0.2, lambda safe, i: True)
    found = {
        (i, "linear"): Evidence(Score(v, v, v, v, v, v, "corrected"), True)
        for i, v in enumerate(FALLING)
    }
    assert plan.next(found) == (7, "decoder")
    assert plan.next(found, {(7, "decoder")}) == (6, "decoder")
    assert plan.next(found, {(i, "decoder") for i in range(8)}) is None


scores = st.lists(st.floats(0, 1), min_size=8, max_size=8)


@given(scores, scores)
def test_the_answer_is_that_of_the_exhaustive_sweep(linear, decoder):
    """Whatever the curves, monotone or not, no safe cut is missed and none is made up."""
    truth = truth_of(linear, decoder)
    plan, found, _ = walk(truth)
    everything = {
        job: Evidence(Score(lo, lo, lo, lo, lo, hi, "corrected"), True)
        for job, (lo, hi) in truth.items()
    }
    ours = [v.safe for v in judge(NAMES, plan.panel, found, 0.2)]
    sweep = [v.safe for v in judge(NAMES, plan.panel, everything, 0.2)]
    assert ours == sweep


@pytest.mark.parametrize("fail", range(8))
def test_a_failure_ends_the_walk_without_a_safe_cut_before_it(fail):
    plan = Plan(NAMES, RANKS, 0.2, lambda safe, i: True)
    found = {}
    while (job := plan.next(found)) is not None:
        low = None if job == (fail, "decoder") else Score(0, 0, 0, 0, 0, 0.01, "corrected")
        found[job] = Evidence(low, low is not None)
    safe = [v.safe for v in judge(NAMES, plan.panel, found, 0.2)]
    assert safe == [False] * (fail + 1) + [True] * (7 - fail)


def halve(truth, could_win=lambda safe, i: True, full=(), pick=min):
    """Follow a plan by halves; `truth` as in `walk`, `pick` chooses among safe cuts."""
    halving = Halving(full=full, fastest=lambda safe: pick(safe) if safe else None)
    plan = Plan(NAMES, RANKS, 0.2, could_win, halving=halving)
    found, order = {}, []
    while (job := plan.next(found)) is not None:
        assert job not in found
        low, high = truth[job]
        found[job] = Evidence(Score(low, low, low, low, low, high, "corrected"), True)
        order.append(job)
    verdicts = judge(NAMES, plan.panel, found, 0.2, cover=plan.cover())
    answers = [i for i, v in enumerate(verdicts) if v.safe and v.complete]
    return pick(answers) if answers else None, found, order


def test_by_halves_a_leak_settles_what_is_before_and_a_safe_cut_what_is_after():
    decoder = [0.95, 0.9, 0.7, 0.5, 0.3, 0.12, 0.06, 0.02]
    answer, _, order = halve(truth_of(FALLING, decoder))
    assert order[:8] == [(i, "linear") for i in range(7, -1, -1)]
    assert order[8:] == [(6, "decoder"), (5, "decoder"), (4, "decoder")]
    assert answer == 5


@given(scores, scores)
def test_by_halves_falling_scores_give_the_answer_of_the_sweep(linear, decoder):
    linear, decoder = sorted(linear, reverse=True), sorted(decoder, reverse=True)
    decoder = [max(pair) for pair in zip(linear, decoder, strict=True)]
    truth = truth_of(linear, decoder)
    answer, _, order = halve(truth)
    ours = [i for i in range(8) if max(truth[i, "linear"][1], truth[i, "decoder"][1]) < 0.2]
    assert answer == (min(ours) if ours else None)
    assert len([j for j in order if j[1] == "decoder"]) <= 4


@given(scores, scores, st.sets(st.integers(0, 7)), st.sampled_from([min, max]))
def test_by_halves_no_answer_is_made_up(linear, decoder, full, pick):
    """Whatever the curves: what is measured at the answer, and at each cut that must be, holds."""
    truth = truth_of(linear, decoder)
    answer, found, _ = halve(truth, full=full, pick=pick)
    if answer is None:
        return
    assert truth[answer, "decoder"][1] < 0.2
    for i in range(answer, 8):
        assert truth[i, "linear"][1] < 0.2
        if i in full:
            assert (i, "decoder") in found
            assert truth[i, "decoder"][1] < 0.2


def test_by_halves_the_answer_is_attacked_itself():
    decoder = [v + 0.01 for v in FALLING]
    answer, found, order = halve(truth_of(FALLING, decoder), pick=max)
    assert answer == 7
    assert order[-1] == (7, "decoder")
    assert (7, "decoder") in found


def test_by_halves_a_doubt_about_the_answer_moves_it_on():
    truth = truth_of(FALLING, [v + 0.01 for v in FALLING])
    halving = Halving(full=(), fastest=min)
    plan = Plan(NAMES, RANKS, 0.2, lambda safe, i: True, first=(4, "decoder"), halving=halving)
    found = {}
    while (job := plan.next(found)) is not None:
        low, high = truth[job]
        found[job] = Evidence(Score(low, low, low, low, low, high, "corrected"), True)
    assert [i for i, a in found if a == "decoder"] == [4], "it stands for all later ones"
    job = plan.next(found, doubts={4: Doubt("it still learns")})
    assert job is not None
    assert job[0] > 4
    assert job[1] == "decoder"


def test_by_halves_cuts_of_unknown_places_are_attacked_themselves():
    truth = truth_of(FALLING, [v + 0.01 for v in FALLING])
    _, found, _ = halve(truth)
    halving = Halving(full=(), fastest=min)
    plan = Plan(NAMES, RANKS, 0.2, lambda safe, i: True, halving=halving)
    unseen = next(i for i in (7, 6, 5) if (i, "decoder") not in found)
    assert plan.next(found, unplaced={unseen}) == (unseen, "decoder")


def test_by_halves_what_was_asked_for_comes_first():
    halving = Halving(full=(), fastest=min)
    plan = Plan(NAMES, RANKS, 0.2, lambda safe, i: True, first=(5, "decoder"), halving=halving)
    found = {
        (i, "linear"): Evidence(Score(v, v, v, v, v, v, "corrected"), True)
        for i, v in enumerate(FALLING)
    }
    assert plan.next(found) == (5, "decoder")


def test_by_halves_other_workers_go_on_with_what_may_come_after():
    plan = Plan(NAMES, RANKS, 0.2, lambda safe, i: True, halving=Halving(full=(), fastest=min))
    found = {
        (i, "linear"): Evidence(Score(v, v, v, v, v, v, "corrected"), True)
        for i, v in enumerate([0.1] * 8)
    }
    running = set()
    while (job := plan.next(found, running)) is not None:
        running.add(job)
    assert running == {(i, "decoder") for i in range(8)}
    assert plan.next(found) == (4, "decoder")
    assert plan.next(found, {(4, "decoder")}) == (2, "decoder")
