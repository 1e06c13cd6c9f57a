"""What the workers report: bounded, and nothing hides anything else."""

from partopt.enclave_runner import journal
from partopt.enclave_runner.journal import EACH, KEPT, Journal


def test_whatever_came_before_a_new_event_is_shown():
    events = Journal()
    for i in range(3 * KEPT):
        events.append({"event": "refused", "side": "client", "code": "forged", "n": i})
    assert len(events.fresh()) == EACH
    events.append({"event": "restart", "from": "tail"})
    assert events.fresh() == ['{"event": "restart", "from": "tail"}']
    assert len(list(events)) == KEPT
    assert list(events)[-1]["event"] == "restart"
    assert events.fresh() == []


def test_what_is_not_shown_is_counted(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])
    events = Journal()
    for _ in range(EACH + 7):
        events.append({"event": "refused", "code": "forged"})
    events.fresh()
    now[0] = 61.0
    assert events.fresh() == ['{"event": "refused", "code": "forged"} and 7 more within a minute']
    events.append({"event": "refused", "code": "forged"})
    assert len(events.fresh()) == 1, "a new minute shows again"


def test_kinds_and_lengths_are_bounded():
    events = Journal()
    for i in range(1000):
        events.append({"event": "error", "kind": f"{i}" + "x" * 9000})
    lines = events.fresh()
    assert len(lines) < 200
    assert max(map(len, lines)) <= 400


def test_what_is_of_no_interest_is_no_line():
    events = Journal()
    events.append({"event": "tail"})
    assert events.fresh() == []
    assert len(list(events)) == 1
