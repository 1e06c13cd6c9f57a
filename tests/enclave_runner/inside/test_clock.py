"""Deadlines go by time in which the worker ran, whatever the machine's clock says."""

from __future__ import annotations

import random

import pytest

from partopt.enclave_runner.inside.clock import LEAP_S, Clock


class Machine:
    """A clock that a host sets."""

    def __init__(self) -> None:
        self.told = 1.7e9

    def __call__(self) -> float:
        return self.told


def test_time_that_passes_is_told():
    machine = Machine()
    clock = Clock(machine)
    begun = clock.now()
    assert begun > 0, "0 means never"
    for _ in range(100):
        machine.told += 0.2
        clock.now()
    assert clock.now() - begun == pytest.approx(20)


@pytest.mark.parametrize("step", [-3600.0, -0.001, 3600.0, 1e9, -1e9])
def test_a_leap_is_no_time(step):
    machine = Machine()
    clock = Clock(machine)
    before = clock.now()
    machine.told += step
    assert 0 <= clock.now() - before <= LEAP_S
    after = clock.now()
    machine.told += 0.5
    assert clock.now() - after == pytest.approx(0.5), "and it goes on from there"


@pytest.mark.parametrize("seed", range(20))
def test_it_never_goes_back(seed):
    source, machine = random.Random(seed), Machine()
    clock, last = Clock(machine), 0.0
    for _ in range(200):
        machine.told += source.gauss(0, 10)
        assert last <= clock.now() <= last + LEAP_S + 1.0
        last = clock.now()
