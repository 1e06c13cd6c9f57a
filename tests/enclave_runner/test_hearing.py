"""Waiting for a worker ends, whatever the worker does."""

import contextlib
import socket
import time
from types import SimpleNamespace

import pytest

from partopt.enclave_runner.hearing import Hearing
from partopt.enclave_runner.wire.messages import Control
from partopt.errors import ServiceError


@pytest.fixture
def worker():
    """A hearing, a worker, and the worker's own side of the connection."""
    ours, theirs = socket.socketpair()
    events = []
    hearing = Hearing(lambda name, event: events.append((name, event)))
    started = SimpleNamespace(
        control=Control(ours),
        process=SimpleNamespace(pid=1, poll=lambda: -9, wait=lambda seconds: -9),
        output=SimpleNamespace(last_line=lambda: "its last words"),
    )
    said = Control(theirs)
    yield hearing, hearing.hear("tail", started), said, events
    for control in (said, started.control):
        with contextlib.suppress(OSError):
            control.close()


def test_a_worker_that_says_nothing_is_not_waited_for_for_ever(worker):
    hearing, tail, said, _ = worker
    said.send(event="loading")
    begun = time.monotonic()
    with pytest.raises(ServiceError, match=r"tail worker was not there within 0 s .*start-timeout"):
        hearing.wait(tail, "ready", 0.3)
    assert time.monotonic() - begun < 5


def test_what_was_waited_for_comes(worker):
    hearing, tail, said, events = worker
    said.send(event="alive")
    said.send(event="ready", n=1)
    assert hearing.wait(tail, "ready", 10)["n"] == 1
    assert events == [("tail", {"event": "ready", "n": 1})]


def test_death_failure_and_our_own_end_are_told_apart(worker):
    hearing, tail, said, _ = worker
    said.send(event="failed", error="no such device")
    with pytest.raises(ServiceError, match="no such device"):
        hearing.wait(tail, "ready", 10)
    said.close()
    with pytest.raises(ServiceError, match=r"ended \(exit status -9\): its last words"):
        hearing.wait(tail, "ready", 10)
    hearing.stop()
    for _ in range(2):
        with pytest.raises(ServiceError, match="is ending"):
            hearing.wait(tail, "ready", 10)


def test_who_answers_is_not_silent(worker):
    _, tail, said, _ = worker
    for _ in range(3):
        tail.ask()
    assert tail.unanswered == 3
    assert said.read() == {"do": "say"}
    said.send(event="alive")
    deadline = time.monotonic() + 5
    while tail.unanswered and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tail.unanswered == 0
