"""A stored result by the times of a profile."""

from __future__ import annotations

import pytest

from partopt.config import Taken
from partopt.errors import ConfigError
from partopt.optimizer.retime import retimed
from partopt.profilers.machine import now, this_machine
from partopt.profilers.target import Span, TargetProfile, Timed, TimedCut, TimedModel, Whole
from partopt.reporting.compare import rows

from ..reporting.test_table import certified

HASH = "graph2:" + "0" * 64
HOW = {
    "enclave": "gramine-sgx",
    "accelerator": "cuda",
    "threads": 1,
    "batch": 1,
    "repetitions": 5,
    "warmup": 1,
    "seed": 0,
}


def target(
    times: dict[str, float], whole: float = 30.0, graph: str = HASH, **conditions
) -> TargetProfile:
    """Cuts by name with their heads' times; tails take 1 ms, hand-offs half of one."""

    def took(ms):
        return Span(ms=ms, noise_ms=0.0)

    return TargetProfile(
        model=TimedModel(spec="net", weights="w", input_shape=[1, 3, 8, 8], graph_hash=graph),
        taken=Taken(machine=this_machine("target"), at=now()),
        conditions=Timed(**{**HOW, **conditions}),
        full_enclave=Whole(ms=whole, noise_ms=0.0),
        full_accelerator=Whole(ms=2.0, noise_ms=0.0),
        cuts=[
            TimedCut(
                name=name,
                payload_bytes=4,
                head_param_bytes=1,
                head_peak_activation_bytes=1,
                enclave=took(ms),
                handoff=took(0.5),
                accelerator=took(1.0),
            )
            for name, ms in times.items()
        ],
    )


def result(**changes):
    """Two cuts that pass, of which `late` is deployed; natively timed, so nothing compares."""
    made = certified(**changes)
    made.model = made.model.model_copy(update={"graph_hash": HASH})
    early = made.cuts[0].model_copy(update={"name": "early"})
    made.cuts = [early, *made.cuts]
    return made


def test_the_profiles_times_take_the_place_of_the_results_own():
    before = result()
    assert before.recommendation is None
    after = retimed(before, target({"early": 5.0, "late": 9.0}))
    config = after.config
    assert [r.latency_ms.enclave.ms for r in config.cuts] == [5.0, 9.0]
    assert config.latency_ms.total.ms == pytest.approx(10.5)
    assert config.full_enclave_ms.ms == config.latency_ms.full_enclave.ms == 30.0
    assert config.recommendation == "split"
    assert config.taken.machine.name == "target"
    assert after.fastest == "early"
    assert config.cut.name == "late", "what is deployed does not change by timing it"
    assert before.latency_ms.total.ms == 8.0
    slower = retimed(before, target({"early": 5.0, "late": 9.0}, whole=9.0)).config
    assert slower.recommendation == "do not split"


def test_a_cut_that_does_not_pass_is_not_the_fastest():
    before = result()
    before.cuts[0] = before.cuts[0].model_copy(update={"status": "leaks", "safe": False})
    assert retimed(before, target({"early": 5.0, "late": 9.0})).fastest == "late"


def test_what_does_not_fit_is_refused():
    for graph in (HASH[:-1] + "1", "graph1:" + "0" * 64):
        with pytest.raises(ConfigError, match="is of another layer graph"):
            retimed(result(), target({"early": 5.0, "late": 9.0}, graph=graph))
    with pytest.raises(ConfigError, match="has no times of the cut 'late'"):
        retimed(result(), target({"early": 5.0, "later": 9.0}))


def test_two_results_are_compared_by_the_same_times():
    table = {
        label: (one, two)
        for label, one, two in rows(result(), result(), target({"early": 5.0, "late": 9.0}))
    }
    assert table["total ms"] == ("10.50 (measured)",) * 2
    assert table["ratio"] == ("2.86x",) * 2
    assert table["fastest by these times"] == ("early",) * 2
    assert "target" in table["times"][0]
