import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from partopt.enclave_runner.program.programs import Program
from partopt.enclave_runner.wire.areas import shm_folder
from partopt.errors import BackendError, ExportError, UsageError
from partopt.graph.build import trace
from partopt.profilers.backends import pick_accelerator, pick_enclave
from partopt.profilers.base import Conditions, CutLatency, Duration, Profile
from partopt.profilers.handoff import Handoff, handoff
from partopt.profilers.profile import modelled, profile, verify
from partopt.profilers.sgx_model import SgxModel
from partopt.profilers.statistics import median_and_noise


@pytest.fixture
def graph(tiny):
    return trace(tiny, torch.zeros(1, 3, 32, 32))


def test_every_cut_has_three_parts_from_few_passes(graph):
    cuts = graph.cuts("all")
    shares = []
    p = profile(graph, cuts, Conditions(repetitions=5, warmup=1), progress=shares.append)
    assert len(p.cuts) == len(cuts)
    assert shares[-1] == 1.0
    heads = [c.enclave.ms for c in p.cuts]
    assert heads == sorted(heads), "cumulative times cannot fall"
    for c in p.cuts:
        assert c.total.ms == pytest.approx(c.enclave.ms + c.handoff.ms + c.accelerator.ms)
        assert {c.enclave.basis, c.handoff.basis, c.accelerator.basis} == {"measured"}
        assert (c.enclave.backend, c.accelerator.backend) == ("native", "cpu")
    assert p.full_enclave.ms >= heads[-1]


def test_one_pass_per_repetition_whatever_the_number_of_cuts(graph, monkeypatch):
    calls, run = [], Program.run

    def counted(self, *args):
        calls.append(1)
        return run(self, *args)

    monkeypatch.setattr(Program, "run", counted)
    profile(graph, graph.cuts("all"), Conditions(repetitions=4, warmup=1))
    # native and cpu are the same device: warm-up is 2 passes, then one a repetition.
    assert len(calls) == 2 + 4


def test_a_model_that_cannot_be_exported_is_timed_as_traced_and_says_so(graph, monkeypatch):
    def refuse(*_):
        raise ExportError("no program")

    monkeypatch.setattr("partopt.profilers.instrumented.marked", refuse)
    p = profile(graph, graph.cuts(), Conditions(repetitions=2, warmup=0))
    assert p.full_enclave.ms > 0
    assert any("timed as traced: no program" in w for w in p.warnings)


def test_thread_count_is_used_and_restored(graph):
    torch.set_num_threads(2)
    assert profile(graph, graph.cuts(), Conditions(threads=1, repetitions=1)).threads == 1
    assert torch.get_num_threads() == 2


@pytest.fixture
def handed(monkeypatch):
    """Sizes of the payloads handed over, each of which is said to take 100 s."""
    sizes = []
    monkeypatch.setattr(Handoff, "once", lambda self, size: sizes.append(size) or 100.0)
    return sizes


@pytest.mark.parametrize("traced_at", [1, 2])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_payload_is_that_of_the_batch(tiny, handed, traced_at, batch):
    graph = trace(tiny, torch.zeros(traced_at, 3, 32, 32))
    cuts = graph.cuts()
    numbers = {c.payload_bytes // traced_at * batch for c in cuts}
    p = profile(graph, cuts, Conditions(batch=batch, repetitions=1, warmup=0))
    assert p.batch == batch
    assert set(handed) == numbers
    handed.clear()
    verify(graph, cuts[0], p.cuts[0], Conditions(batch=batch, repetitions=1))
    assert set(handed) == {cuts[0].payload_bytes // traced_at * batch}


def test_a_verification_holds_the_handoff_on_both_sides(graph, handed):
    cuts = graph.cuts()
    p = profile(graph, cuts, Conditions(repetitions=1, warmup=0))
    v = verify(graph, cuts[1], p.cuts[1], Conditions(repetitions=2))
    for ms in (v.predicted_ms, v.measured_ms, v.profiled_ms):
        assert 100e3 < ms < 110e3


def test_the_sgx_model_is_labelled_everywhere(graph):
    cuts = graph.cuts()
    measured = profile(graph, cuts, Conditions(repetitions=2, warmup=0))
    model = SgxModel.parse("slowdown=2,transition_us=0,epc_mib=1000")
    p = modelled(measured, graph, cuts, model)
    assert p.full_enclave.basis == "modelled"
    for before, after in zip(measured.cuts, p.cuts, strict=True):
        assert after.enclave.ms == pytest.approx(2 * before.enclave.ms)
        assert after.enclave.basis == after.total.basis == "modelled"
        assert after.accelerator == before.accelerator
        assert "sgx-model" in after.enclave.backend
    assert any("modelled" in w for w in p.warnings)
    assert not any("without an enclave" in w for w in p.warnings)


def test_times_of_sgx_are_not_scaled(graph):
    cuts = graph.cuts()
    measured = profile(graph, cuts, Conditions(repetitions=1, warmup=0))
    inside = replace(measured.full_enclave, backend="gramine-sgx")
    with pytest.raises(UsageError, match=r"`sgx-model` got 'slowdown=1\.5.*inside SGX"):
        modelled(replace(measured, full_enclave=inside), graph, cuts, SgxModel())
    gramine = replace(measured.full_enclave, backend="gramine-direct")
    p = modelled(replace(measured, full_enclave=gramine), graph, cuts, SgxModel())
    assert p.full_enclave.backend.endswith("of gramine-direct")


@pytest.mark.parametrize("batch", [1, 5])
def test_activations_of_the_whole_batch_page(graph, batch):
    """Parameters are there once, activations for every image."""
    cuts = graph.cuts()
    took = Duration(3.0, 0.0, "measured", "native")
    latency = CutLatency(enclave=took, handoff=took, accelerator=took, total=took)
    measured = Profile(
        cuts=[latency] * len(cuts),
        full_enclave=took,
        full_accelerator=took,
        threads=1,
        batch=batch,
        repetitions=1,
    )
    model = SgxModel(slowdown=1.0, transition_us=0, epc_mib=0, paging_ms_per_mib=2**20)
    p = modelled(measured, graph, cuts, model)
    for cut, after in zip(cuts, p.cuts, strict=True):
        paged = cut.head_param_bytes + batch * cut.head_peak_activation_bytes
        assert after.enclave.ms == pytest.approx(3 + paged)
    assert p.full_enclave.ms == pytest.approx(
        3 + graph.param_bytes + batch * graph.peak_activation_bytes
    )


def test_paging_beyond_the_epc():
    model = SgxModel(slowdown=1.0, transition_us=0, epc_mib=10, paging_ms_per_mib=2)
    assert model.enclave_ms(5, 10 << 20) == 5
    assert model.enclave_ms(5, 12 << 20) == pytest.approx(9)


@pytest.mark.parametrize("text", ["fast", "slowdown=x", "slowdown=0.5", "epc_mib=-1", "epc=3"])
def test_wrong_sgx_models(text):
    with pytest.raises(UsageError, match="`sgx-model`"):
        SgxModel.parse(text)


def test_verification_runs_the_split_for_real(graph):
    cuts = graph.cuts()
    p = profile(graph, cuts, Conditions(repetitions=2, warmup=0))
    v = verify(graph, cuts[1], p.cuts[1], Conditions(repetitions=3))
    assert v.measured_ms > 0
    assert v.profiled_ms == p.cuts[1].total.ms
    assert v.error == pytest.approx((v.measured_ms - v.predicted_ms) / v.measured_ms)


def test_handoff_of_any_size_and_a_second_use_of_the_other_process():
    with handoff(100_000) as channel:
        first = channel._process.process.pid
        assert 0 < channel.once(100_000) < 5
        assert 0 < channel.once(1) < 5
    with handoff(10) as channel:
        assert channel._process.process.pid == first
        assert channel.once(10) > 0


def test_a_dead_second_process_is_an_error_not_a_hang():
    with handoff(10) as channel:
        channel._process.process.kill()
        channel._process.process.wait()
        with pytest.raises(BackendError, match="did not answer"):
            channel.once(10)
    with handoff(10) as channel:  # a new one is started
        assert channel.once(10) > 0


def test_nothing_is_left_in_shared_memory():
    with handoff(10):
        pass
    assert not shm_folder(f"profile-{os.getpid()}").exists()


def test_backends_that_are_not_here():
    assert pick_enclave("auto") in ("native", "gramine-direct", "gramine-sgx")
    if not os.path.exists("/dev/sgx_enclave"):
        with pytest.raises(BackendError, match="gramine-sgx"):
            pick_enclave("gramine-sgx")
    with pytest.raises(UsageError, match="`enclave` got 'tdx'"):
        pick_enclave("tdx")
    with pytest.raises(UsageError, match="`accelerator` got 'tpu'"):
        pick_accelerator("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu():
    with pytest.raises(BackendError, match="no GPU"):
        pick_accelerator("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_cuda_events(graph):
    p = profile(graph, graph.cuts(), Conditions(accelerator="cuda", repetitions=3))
    assert all(c.accelerator.backend == "cuda" for c in p.cuts)


def test_median_and_noise():
    values = np.random.default_rng(0).normal(10, 1, 4000)
    median, noise = median_and_noise(list(values))
    assert median == pytest.approx(10, abs=0.1)
    assert noise == pytest.approx(1.2533 / 4000**0.5, rel=0.1)
    assert median_and_noise([1, 1, 50])[0] == 1
