"""The same under a real gramine-direct: it protects nothing, but runs what gramine-sgx would."""

import os
import shutil
import signal
import time

import pytest
import torch

from partopt.enclave_runner.bench import bench
from partopt.enclave_runner.bundles import signing
from partopt.enclave_runner.bundles.export import Build, Keys, Source, export
from partopt.enclave_runner.inside.decoding import decoded
from partopt.enclave_runner.orchestrator import ServeOptions, Service
from partopt.enclave_runner.program.parts import Part
from partopt.enclave_runner.program.sealing import read_key
from partopt.errors import BackendError, ServiceError, SessionError
from partopt.profilers.base import Conditions
from partopt.profilers.profile import profile

from .conftest import ENGINE
from .picture_kinds import damaged, pictures

pytestmark = [
    pytest.mark.gramine,
    pytest.mark.skipif(
        shutil.which("gramine-direct") is None, reason="gramine-direct is not on PATH"
    ),
]
DIRECT = "gramine-direct"


@pytest.mark.parametrize("transport", ["shm", "tcp", "file"])
def test_answers_are_bit_identical_and_nothing_else_leaves(made, photo, transport, crossing):
    # `record` compares each answer with the unsplit model's.
    crossing.check(made, photo, crossing.record(made, photo, transport, DIRECT))


def test_gramines_encrypted_mount(made, photo, tmp_path):
    done = export(
        Source(split=made.split, accept_screening=True, trust_model=True),
        tmp_path / "b",
        build=Build(engine=ENGINE),
        keys=Keys(seal_with="gramine"),
    )
    key = read_key(done.key)
    options = ServeOptions(enclave=DIRECT)
    with pytest.raises(BackendError, match="native cannot open it"):
        Service(done.folder, ServeOptions(enclave="native"), key=key, insecure=True)
    with Service(done.folder, options, key=key, insecure=True) as service:
        with service.client() as client:
            assert torch.equal(client.classify(photo).tensors[0], made.logits(photo))
    wrong = bytes(32)
    with pytest.raises(ServiceError, match="key is wrong"):
        Service(done.folder, options, key=wrong, insecure=True).__enter__()


def back(service, before: int) -> None:
    """Wait until another head than the process `before` is there."""
    deadline = time.time() + 240
    while service.pids["head"] == before and time.time() < deadline:
        time.sleep(0.1)
    service.wait_ready(240)


def test_a_killed_enclave_comes_back(made, photo):
    with made.service(enclave=DIRECT) as service:
        with service.client() as client:
            client.classify(photo)
            before = service.pids["head"]
            os.kill(before, signal.SIGKILL)
            with pytest.raises((ServiceError, SessionError)):
                client.classify(photo)
        back(service, before)
        with service.client() as client:
            assert torch.equal(client.classify(photo).tensors[0], made.logits(photo))


def test_profiles_inside(made):
    graph = made.loaded.trace()
    found = profile(graph, graph.cuts(), Conditions(enclave=DIRECT, repetitions=3, warmup=1))
    assert {c.enclave.backend for c in found.cuts} == {DIRECT}
    assert found.worker.start_s > 0
    assert found.worker.peak_bytes > 50 << 20
    assert any("neither SGX" in w for w in found.warnings)
    heads = [c.enclave.ms for c in found.cuts]
    assert heads == sorted(heads)


def test_profiles_by_onnx_runtime_inside(made):
    graph = made.loaded.trace()
    how = Conditions(enclave=DIRECT, engine="ort", repetitions=3, warmup=1)
    found = profile(graph, graph.cuts(), how)
    assert found.engine == "ort"
    assert {c.enclave.backend for c in found.cuts} == {DIRECT}
    heads = [c.enclave.ms for c in found.cuts]
    assert heads[0] > 0
    assert heads == sorted(heads)


@pytest.mark.slow
def test_bench_inside(made, photo):
    found = bench(
        made.folder,
        photo,
        ServeOptions(enclave=DIRECT),
        made.key,
        insecure=True,
        requests=10,
        published=1,
    )
    assert found.backend == DIRECT
    assert set(found.baselines) == {"whole in enclave", "whole outside", "published"}


def test_signing_gives_the_measurement_that_gramine_shows(made, tmp_path):
    import subprocess

    if signing.missing() or shutil.which("gramine-sgx-sigstruct-view") is None:
        pytest.skip("gramine-sgx-sign is not on PATH")
    key = tmp_path / "key.pem"
    subprocess.run(["gramine-sgx-gen-private-key", str(key)], check=True, capture_output=True)
    split = shutil.copy(made.split, tmp_path / "s.json")
    done = export(
        Source(split=tmp_path / "s.json", accept_screening=True, trust_model=True),
        tmp_path / "b",
        keys=Keys(sign=key),
    )
    shown = subprocess.run(
        ["gramine-sgx-sigstruct-view", str(tmp_path / "b" / "head.sig")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert done.bundle.mrenclave in shown
    from partopt.config import SplitConfig

    assert SplitConfig.read(split).mrenclave == done.bundle.mrenclave


@pytest.fixture(scope="module")
def inside(made):
    with made.service(enclave=DIRECT) as service:
        yield service


def test_every_kind_of_picture_is_seen_as_natively_bit_for_bit(made, inside):
    """Decoders open plug-ins and profiles late, and only trusted files can be opened inside."""
    part = Part.read(made.folder / "head")
    torch.set_num_threads(1)
    with inside.client() as client:
        for name, data in pictures().items():
            x = torch.from_numpy(decoded(data, part.preprocessing, part.limits))
            wanted = made.answer(x)
            assert torch.equal(client.classify(data).tensors[0], wanted), name
        for name, data in damaged().items():
            with pytest.raises(ServiceError) as caught:
                client.classify(data)
            assert caught.value.code == "bad-image", name


def test_two_services_of_one_bundle(made, photo, inside):
    """A one-off beside a live one: both answer, and the live one's head can still be replaced."""
    wanted = made.logits(photo)
    with made.service(enclave=DIRECT) as second:
        with inside.client() as one, second.client() as other:
            numbers = [(client, client.submit(photo)) for client in (one, other) * 5]
            for client, number in numbers:
                assert torch.equal(client.collect(number).tensors[0], wanted)
    before = inside.pids["head"]
    os.kill(before, signal.SIGKILL)
    back(inside, before)
    with inside.client() as client:
        assert torch.equal(client.classify(photo).tensors[0], wanted)
