"""Both workers for real: answers, refusals, deaths, and what crosses in the clear."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from partopt.enclave_runner.attestation import verifier
from partopt.enclave_runner.client import Client
from partopt.enclave_runner.orchestrator import ServeOptions, Service
from partopt.enclave_runner.program.parts import Part
from partopt.enclave_runner.program.sealing import new_key
from partopt.enclave_runner.wire import areas
from partopt.enclave_runner.wire.ends import open_end
from partopt.enclave_runner.wire.frames import ANSWER
from partopt.enclave_runner.wire.start import Start
from partopt.enclave_runner.wire.transport import Exchange
from partopt.errors import BackendError, ServiceError, SessionError, UsageError


def resident(pid: int) -> int:
    """Resident memory of a process in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(x for x in status.splitlines() if x.startswith("VmRSS:")).split()[1])


@pytest.fixture(scope="module")
def service(made):
    with made.service(batch=4) as running:
        yield running
    assert made.left_over() == []


@pytest.mark.parametrize("transport", ["shm", "tcp", "file"])
def test_answers_are_the_unsplit_models_bit_for_bit(made, photo, transport):
    with made.service(transport=transport) as service, service.client() as client:
        for _ in range(3):
            answer = client.classify(photo)
            assert torch.equal(answer.tensors[0], made.logits(photo))
        assert {"decrypt", "preprocess", "head", "hand-off", "tail", "return"} <= set(answer.times)
        assert 0 < answer.times["inside"] < answer.seconds
    assert made.left_over() == []


def test_many_requests_in_flight_and_batches_keep_their_answers_apart(made, service, pictures):
    wanted = {i: made.logits(p) for i, p in enumerate(pictures)}
    with service.client() as client:
        numbers = []
        for _ in range(4):
            numbers += [(i, client.submit(p)) for i, p in enumerate(pictures)][:12]
            for i, number in numbers[-12:]:
                torch.testing.assert_close(client.collect(number).tensors[0], wanted[i])


def test_what_is_no_image_is_refused_and_the_session_goes_on(made, service, photo):
    with service.client() as client:
        for bad in (b"", b"no image", photo[: len(photo) // 2], b"GIF89a" + bytes(50)):
            with pytest.raises(ServiceError) as caught:
                client.classify(bad)
            assert caught.value.code == "bad-image"
        with pytest.raises(ServiceError) as caught:
            client.classify(bytes((16 << 20) + 1))
        assert caught.value.code == "too-large"
        assert torch.equal(client.classify(photo).tensors[0].argmax(), made.logits(photo).argmax())


def test_a_full_queue_answers_busy(made, photo):
    with made.service(queue=1, in_flight=1) as service, service.client() as client:
        numbers = [client.submit(photo) for _ in range(60)]
        codes = []
        for number in numbers:
            try:
                answer = client.collect(number)
                assert torch.equal(answer.tensors[0], made.logits(photo))
                codes.append("answered")
            except ServiceError as error:
                codes.append(error.code)
        assert set(codes) == {"answered", "busy"}


def test_sealed_weights_wait_for_their_key(made, photo):
    options = ServeOptions(enclave=made.enclave)
    with Service(made.folder, options, key=None, insecure=True) as service:
        with service.client() as client:
            for wrong in (new_key(), b"short", b""):
                with pytest.raises(ServiceError) as caught:
                    client.unlock(wrong)
                assert caught.value.code == "wrong-key"
            with pytest.raises(ServiceError) as caught:
                client.classify(photo)
            assert caught.value.code == "locked"
            client.unlock(made.key)
            assert torch.equal(client.classify(photo).tensors[0], made.logits(photo))


def test_without_attestation_nothing_runs_unless_asked(made):
    with pytest.raises(UsageError, match="--insecure-no-attestation"):
        Service(made.folder, ServeOptions(enclave=made.enclave), key=made.key)


def test_a_client_refuses_a_head_that_proves_nothing(made, service):
    part = Part.read(made.folder / "head")
    verify = verifier(None, insecure=False)
    with pytest.raises(SessionError, match="proves nothing"):
        Client(service.address, part.answers, part.limits, verify)


def test_arguments(made):
    for wrong in ({"transport": "smoke"}, {"threads": 0}, {"batch": 0}, {"in_flight": 65}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            ServeOptions(**wrong)
    with pytest.raises(UsageError, match="`batch` got 9"):
        made.service(batch=9)
    if not os.path.exists("/dev/sgx_enclave"):
        with pytest.raises(BackendError, match="gramine-sgx"):
            made.service(enclave="gramine-sgx")


def test_nobody_there(made):
    part = Part.read(made.folder / "head")
    with pytest.raises(SessionError, match="no head worker at"):
        Client(("127.0.0.1", 1), part.answers, part.limits, lambda hello: None)


@pytest.mark.parametrize("victim", ["tail", "head"])
def test_a_killed_worker_comes_back_and_no_answer_is_wrong(made, photo, victim):
    wanted, codes, stop = made.logits(photo), [], threading.Event()
    with made.service() as service:

        def ask() -> None:
            while not stop.is_set():
                try:
                    with service.client(timeout=20) as client:
                        while not stop.is_set():
                            answer = client.classify(photo)
                            codes.append(torch.equal(answer.tensors[0], wanted))
                except (ServiceError, SessionError):
                    codes.append("error")
                    time.sleep(0.02)

        thread = threading.Thread(target=ask)
        thread.start()
        for _ in range(2):
            time.sleep(0.3)
            before = service.pids[victim]
            os.kill(before, signal.SIGKILL)
            deadline = time.time() + 30
            while service.pids[victim] == before and time.time() < deadline:
                time.sleep(0.05)
            service.wait_ready(30)
        answered = codes.count(True)
        deadline = time.time() + 20
        while codes.count(True) < answered + 5 and time.time() < deadline:
            time.sleep(0.05)
        stop.set()
        thread.join(30)
    assert False not in codes
    assert codes.count(True) >= answered + 5, "it answers again"
    assert "error" in codes
    assert made.left_over() == []


def test_a_worker_that_dies_again_and_again_is_given_up(made):
    with made.service() as service:
        service._restarts.extend([time.monotonic()] * 6)
        os.kill(service.pids["tail"], signal.SIGKILL)
        with pytest.raises(ServiceError, match="cannot be started again"):
            for _ in range(200):
                service.check()
                time.sleep(0.05)


@pytest.fixture
def head_alone(made):
    """A head worker that waits for the tail of another service, over the door itself."""
    options = ServeOptions(enclave=made.enclave, transport="tcp")
    with Service(made.folder, options, key=made.key, insecure=True, with_tail=False) as service:
        yield service


def token_of(service) -> bytes:
    return bytes.fromhex(service._token)


def taken_as_tail(service, said: bytes) -> bool:
    """Whether the head worker takes who says so for its tail; otherwise it hangs up."""
    with socket.create_connection(("127.0.0.1", service._tail_port), 10) as sock:
        sock.sendall(said)
        return sock.recv(1) == b"G"


def test_only_who_has_the_token_becomes_the_tail(made, photo, head_alone):
    token = token_of(head_alone)
    flipped = [token[:i] + bytes([token[i] ^ 1]) + token[i + 1 :] for i in (0, 7, len(token) - 1)]
    for wrong in (bytes(len(token)), *flipped):
        assert not taken_as_tail(head_alone, wrong)
        with head_alone.client() as client, pytest.raises(ServiceError, match="no tail worker"):
            client.classify(photo)
    assert taken_as_tail(head_alone, token)


def test_a_stranger_beside_a_tail_gets_nothing(made, photo):
    """It waits at the door while a tail is there, and is the first to be read when that is gone."""
    with made.service(transport="tcp") as service:
        with socket.create_connection(("127.0.0.1", service._tail_port), 60) as stranger:
            stranger.sendall(bytes(len(token_of(service))))
            with service.client() as client:
                assert torch.equal(client.classify(photo).tensors[0], made.logits(photo))
            before = service.pids["tail"]
            os.kill(before, signal.SIGKILL)
            assert stranger.recv(1) == b"", "hung up on, not taken"
        deadline = time.time() + 30
        while service.pids["tail"] == before and time.time() < deadline:
            time.sleep(0.05)
        service.wait_ready(30)
        with service.client() as client:
            assert torch.equal(client.classify(photo).tensors[0], made.logits(photo))


def test_a_tail_that_lies_is_hung_up_on(made, photo, head_alone):
    """It has the token, and answers a run that nobody asked for: refused, and no tail any more."""
    part = Part.read(made.folder / "head")
    exchange = Exchange(boundary=part.outputs, answer=part.answers, batch=1, slots=2)
    start = Start(
        transport="tcp",
        area="",
        slots=2,
        batch=1,
        threads=1,
        queue=1,
        host="",
        port=0,
        token=head_alone._token,
    )
    with socket.create_connection(("127.0.0.1", head_alone._tail_port), 10) as sock:
        sock.sendall(token_of(head_alone))
        assert sock.recv(1) == b"G"
        end = open_end(sock, exchange, start, head=False)
        with head_alone.client() as client:
            number = client.submit(photo)
            header, _ = end.receive(10)
            lie = [torch.zeros(layout.at(1)) for layout in part.answers]
            end.send(ANSWER, header.request + 1, lie, batch=1)
            with pytest.raises(ServiceError, match="tail worker is gone"):
                client.collect(number)
    deadline = time.time() + 10
    while not (refused := [e for e in head_alone.events if e.get("event") == "refused"]):
        assert time.time() < deadline
        time.sleep(0.01)
    assert [(e["side"], e["code"]) for e in refused] == [("tail", "unexpected")]


def fuzz(service, count: int, seed: int = 0) -> None:
    """Throw bytes at the clients' port: noise, half handshakes, broken frames in good sessions."""
    source = random.Random(seed)
    for i in range(count):
        if i % 4 == 0:
            client = service.client(timeout=5)
            raw = bytes(source.randrange(256) for _ in range(source.randrange(1, 200)))
            with contextlib.suppress(OSError):
                client._sock.sendall(raw)
            client.close()
            continue
        with socket.create_connection(service.address) as sock:
            raw = bytearray(source.randbytes(source.randrange(0, 200)))
            if i % 4 == 1:
                raw[:4] = b"POC1"
            with contextlib.suppress(OSError):
                sock.sendall(raw)


def test_ten_thousand_fuzzed_connections_crash_nothing_and_leak_nothing(made, photo):
    with made.service() as service:
        with service.client() as client:
            fuzz(service, 200)
            client.classify(photo)
            head = service.pids["head"]
            time.sleep(0.5)
            before = resident(head)
            fuzz(service, 10_000, seed=1)
            assert torch.equal(client.classify(photo).tensors[0], made.logits(photo))
            time.sleep(0.5)
            assert service.pids["head"] == head
            assert resident(head) < 1.05 * before
        codes = {e["code"] for e in service.events if e.get("event") == "refused"}
        assert codes & {"forged", "malformed", "oversized", "truncated", "unexpected"}


@pytest.mark.slow
def test_a_thousand_requests_do_not_grow_memory(made, photo):
    with made.service() as service, service.client() as client:
        for _ in range(60):
            client.classify(photo)
        before = {name: resident(pid) for name, pid in service.pids.items()}
        for _ in range(1000):
            client.classify(photo)
        after = {name: resident(pid) for name, pid in service.pids.items()}
    for name in before:
        assert after[name] <= 1.05 * before[name], (name, before, after)


def answered(client: Client, photo: bytes, seconds: float = 60.0) -> torch.Tensor:
    """The answer of a service whose tail is still to come."""
    deadline = time.time() + seconds
    while True:
        try:
            return client.classify(photo).tensors[0]
        except ServiceError as error:
            if error.code != "tail-lost" or time.time() > deadline:
                raise
            time.sleep(0.2)


@pytest.mark.slow
def test_a_tail_of_another_service(made, photo, spawn):
    """Two services, as with the two systemd units; a worker that hangs is replaced."""
    options = ServeOptions(enclave=made.enclave, timeout=4.0)
    with Service(made.folder, options, key=made.key, insecure=True, with_tail=False) as service:
        with service.client() as client:
            with pytest.raises(ServiceError, match="no tail worker"):
                client.classify(photo)
            tail = spawn("serve", str(made.folder), "--only", "tail")
            assert torch.equal(answered(client, photo), made.logits(photo))
            workers = workers_of(tail.pid)
            assert len(workers) == 1
            os.kill(workers[0], signal.SIGSTOP)
            deadline = time.time() + 60
            while time.time() < deadline and workers_of(tail.pid) in (workers, []):
                with contextlib.suppress(ServiceError):
                    client.classify(photo)
                time.sleep(0.1)
            workers = workers_of(tail.pid)
            assert torch.equal(answered(client, photo), made.logits(photo))
            tail.send_signal(signal.SIGTERM)
            tail.communicate(timeout=20)
    assert tail.returncode == 0
    assert gone(workers)
    assert made.left_over() == []


@pytest.mark.parametrize("transport", ["shm", "tcp", "file"])
def test_nothing_but_the_boundary_leaves_in_the_clear(made, photo, transport, crossing):
    crossing.check(made, photo, crossing.record(made, photo, transport, made.enclave))


def workers_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def gone(pids: list[int], seconds: float = 20.0) -> bool:
    deadline = time.time() + seconds
    while time.time() < deadline:
        states = []
        for pid in pids:
            with contextlib.suppress(OSError):
                states.append(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
        if all(s == "Z" for s in states):
            return True
        time.sleep(0.1)
    return False


def test_a_served_bundle_from_the_command_line(made, photo, tmp_path, serving):
    """Serve without the key, unlock from elsewhere, ask, and Ctrl-C."""
    process, address = serving()
    image = tmp_path / "photo.png"
    image.write_bytes(photo)
    partopt = [sys.executable, "-m", "partopt"]
    there = ["--connect", address, "--insecure-no-attestation"]
    ask = [*partopt, "run", str(made.folder), "--input", str(image), "--json", *there]
    locked = subprocess.run(ask, capture_output=True, text=True)
    assert locked.returncode == 1
    assert "sealed" in locked.stderr
    key = str(made.folder.with_name("bundle.key"))
    unlock = [*partopt, "unlock", str(made.folder), "--key", key, *there]
    subprocess.run(unlock, check=True, capture_output=True)
    answer = json.loads(subprocess.run(ask, check=True, capture_output=True, text=True).stdout)
    assert answer["protection"].startswith("NO PROTECTION")
    best = int(made.logits(photo).argmax())
    assert answer["answers"][0]["classes"][0]["label"] == f"class {best}"
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.strip().endswith("interrupted")
    assert gone(workers)
    assert made.left_over() == []


def test_sigterm_cleans_up_as_ctrl_c_does(made, serving):
    """As service managers stop a service; also where Ctrl-C is ignored, as under nohup."""
    process, _ = serving("--transport", "file", ignoring=True)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    assert made.on_the_host() != []
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # an impatient one
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert said.strip().endswith("terminated")
    for done in ("ended the head worker", "ended the tail worker", "removed what it had in /var/"):
        assert done in said, "it says what it did"
    assert gone(workers)
    assert made.left_over() == []


def test_nothing_outlives_a_killed_orchestrator(made, serving):
    process, _ = serving("--key", str(made.folder.with_name("bundle.key")))
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.kill()
    process.communicate()
    assert gone(workers), "workers end with their orchestrator"
    left = made.left_over()
    assert sum(p.stat().st_size for p in left if p.is_file()) == 0, "shared memory has no name"
    for folder in {p.parent if p.is_file() else p for p in left}:
        areas.Place(folder, "f" * 16).leave()
    assert made.left_over() == [], "the next service sweeps it out"
