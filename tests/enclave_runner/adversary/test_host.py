"""The host: workers that hang or are killed, services side by side, full disks, what is left."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from partopt.cli import run
from partopt.enclave_runner.inside import computing
from partopt.enclave_runner.inside.decoding import decoded
from partopt.enclave_runner.inside.prices import Prices
from partopt.enclave_runner.orchestrator import ServeOptions, Service
from partopt.enclave_runner.program.parts import Part
from partopt.enclave_runner.program.sealing import new_key
from partopt.enclave_runner.wire import areas
from partopt.errors import ServiceError, SessionError
from partopt.pixels import read

from .conftest import until

PASSING = {"starting", "tail-lost", "head-lost", "session"}


@pytest.fixture(scope="module")
def live(made, tmp_path_factory):
    """A service that every test here hurts, and finds well again at its end."""
    logs = tmp_path_factory.mktemp("logs")
    options = ServeOptions(enclave=made.enclave, timeout=4.0, queue=6, logs=logs)
    with Service(made.folder, options, key=made.key, insecure=True) as service:
        yield service
    assert made.left_over() == []


def healed(service, made, photo, changed: dict[str, int], seconds: float = 60.0) -> set[str]:
    """Ask until other workers than `changed` answer right; what was answered meanwhile."""
    codes, deadline = set(), time.time() + seconds
    while time.time() < deadline:
        try:
            with service.client(timeout=10) as client:
                answer = client.classify(photo)
            assert torch.equal(answer.tensors[0], made.logits(photo))
            if all(service.pids.get(name, pid) != pid for name, pid in changed.items()):
                return codes
            codes.add("answered")
        except ServiceError as error:
            codes.add(error.code)
        except SessionError:
            codes.add("session")
        service.check()
        time.sleep(0.02)
    raise AssertionError(f"not healed: {codes}")


def said(service, event: str, name: str) -> list[dict]:
    return [e for e in service.events if e.get("event") == event and e.get("from") == name]


def test_another_service_of_the_bundle_comes_and_goes(live, made, photo):
    """What the live one needs for mending itself (see below) stays."""
    held = {p for p in made.on_the_host() if p.is_file()}
    with made.service() as other, other.client() as client:
        assert torch.equal(client.classify(photo).tensors[0], made.logits(photo))
        assert any(p.name.startswith(other._start.instance) for p in made.on_the_host())
    assert {p for p in made.on_the_host() if p.is_file()} == held


@pytest.mark.parametrize("hung", ["tail", "head"])
def test_a_worker_that_hangs_is_started_again(live, made, photo, hung):
    """Its process is there, its connections are open: nobody but a clock can tell."""
    before = live.pids
    os.kill(before[hung], signal.SIGSTOP)
    codes = healed(live, made, photo, {hung: before[hung]})
    assert codes <= PASSING | {"timeout"}
    assert said(live, "hung", hung)
    if hung == "tail":
        assert live.pids["head"] == before["head"]


def test_both_killed_at_once_and_nobody_is_told_to_unlock(live, made, photo):
    """The service has the key: what is being opened is starting, not locked."""
    before = live.pids
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    codes = healed(live, made, photo, before)
    assert codes <= PASSING
    assert "exit status -9" in said(live, "ended", "head")[-1]["text"]


def test_many_pictures_and_bad_ones(live, made, pictures, tmp_path, capsys):
    """More than the queue holds; one that is bad costs no other its answer, but the exit code."""
    paths = []
    for i in range(20):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(b"no picture" if i in (3, 11) else pictures[i % len(pictures)])
    paths.insert(5, tmp_path / "nowhere.png")
    address = "{}:{}".format(*live.address)
    asked = [word for path in paths for word in ("--input", str(path))]
    there = ["--connect", address, "--insecure-no-attestation", "--json"]
    assert run(["run", str(made.folder), *asked, *there]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    bad = [str(tmp_path / name) for name in ("3.png", "nowhere.png", "11.png")]
    assert [f["input"] for f in found["failed"]] == bad
    assert [f["code"] for f in found["failed"]] == ["bad-image", "unreadable", "bad-image"]
    assert [a["input"] for a in found["answers"]] == [str(p) for p in paths if str(p) not in bad]
    for answer in found["answers"]:
        best = int(made.logits(Path(answer["input"]).read_bytes()).argmax())
        assert answer["classes"][0]["label"] == f"class {best}"
    assert "3 of 21 images got no answer" in err
    assert run(["run", str(made.folder), "--input", str(paths[0]), *there]) == 0


def warned_about() -> bytes:
    """A picture that Pillow warns about while it is decoded."""
    file = io.BytesIO()
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\xff\xff\x00\x00"
    Image.new("RGB", (40, 40), (7, 99, 7)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_what_a_decoder_thinks_of_a_picture_stays_inside(live):
    picture = warned_about()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read(io.BytesIO(picture))
    assert caught, "it does warn"
    with live.client() as client:
        client.classify(picture)
        with pytest.raises(ServiceError):
            client.classify(picture[:60])
    time.sleep(0.2)
    assert "arn" not in live._head.said()
    assert "xif" not in (live._options.logs / "head.log").read_text()


def test_sealed_weights_after_a_death_and_a_wrong_key_when_they_are_open(made, photo):
    options = ServeOptions(enclave=made.enclave, transport="tcp")
    with Service(made.folder, options, key=None, insecure=True) as service:
        assert len(said(service, "locked", "head")) == 1
        with service.client() as client:
            client.unlock(made.key)
            for wrong in (new_key(), b"short", b""):
                with pytest.raises(ServiceError) as caught:
                    client.unlock(wrong)
                assert caught.value.code == "wrong-key"
            client.unlock(made.key)
            assert torch.equal(client.classify(photo).tensors[0], made.logits(photo))
        before = service.pids["head"]
        os.kill(before, signal.SIGKILL)
        deadline = time.time() + 60
        while service.pids.get("head", before) == before and time.time() < deadline:
            time.sleep(0.05)
        service.wait_ready(60)
        (again,) = said(service, "locked", "head")[1:]
        assert "partopt unlock" in again["text"]
        with service.client() as client, pytest.raises(ServiceError) as caught:
            client.classify(photo)
        assert caught.value.code == "locked"


@pytest.mark.parametrize("transport", ["shm", "file"])
def test_no_room_is_said_before_anything_starts(made, transport, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    where = "/dev/shm has .*--shm-size" if transport == "shm" else "/var/tmp has .*--transport shm"
    with pytest.raises(ServiceError, match=where):
        made.service(transport=transport).__enter__()
    assert made.left_over() == []


def test_killed_while_it_starts_and_nothing_is_left(made, spawn):
    """The workers end by themselves; the next service sweeps out what has a name."""
    process = spawn(
        "serve",
        str(made.folder),
        *("--enclave", made.enclave, "--listen", "127.0.0.1:0", "--insecure-no-attestation"),
    )
    own = Path(f"/proc/{process.pid}/task/{process.pid}")
    deadline = time.time() + 60
    while not (found := _children(own)) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.time() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in found) and time.time() < deadline:
        time.sleep(0.05)
    assert found
    assert not any(Path(f"/proc/{pid}").exists() for pid in found)
    identity = Part.read(made.folder / "head").weights_sha256[:16]
    for folder in (areas.shm_folder(identity), areas.drop_folder(identity)):
        areas.Place(folder, "f" * 16).leave()
    assert made.left_over() == []


def children() -> set[str]:
    return {pid for task in Path("/proc/self/task").iterdir() for pid in _children(task)}


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except OSError:
        return []


def test_leaving_while_a_worker_is_started_again_leaves_none(made):
    before = children()
    with made.service(transport="tcp") as service:
        assert len(children() - before) == 2
        os.kill(service.pids["tail"], signal.SIGKILL)
        deadline = time.time() + 20
        while not said(service, "restart", "tail") and time.time() < deadline:
            time.sleep(0.01)
    assert children() <= before
    assert service.ended[0].endswith("the head worker")


@pytest.mark.parametrize("name", ["head", "tail"])
def test_the_units_leave_a_service_little_to_reach(made, tmp_path, name):
    unit = (made.folder / "systemd" / f"partopt-{name}@.service").read_text()
    (line,) = [x for x in unit.splitlines() if x.startswith("ExecStart=")]
    if name == "head":
        assert "--listen ${LISTEN} " in line, "a port for each instance"
        assert "DeviceAllow=/dev/sgx_enclave rw" in unit
    assert "--logs /var/log/partopt/%i" in line
    assert "PrivateTmp=yes" in unit
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on PATH")
    path = tmp_path / f"partopt-{name}@.service"
    path.write_text(unit)
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "unrecognized option" in done.stderr:
        pytest.skip("a systemd-analyze that reads no files")
    assert done.returncode == 0, done.stdout.splitlines()[-1]


class Asking:
    """Clients that ask without a pause; each one's longest wait in seconds."""

    def __init__(self, client, photo, count: int) -> None:
        self.longest, self.right = [0.0] * count, 0
        self._client, self._photo, self._over = client, photo, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, i: int) -> None:
        with self._client(timeout=60.0) as client:
            while not self._over.is_set():
                begun = time.monotonic()
                client.classify(self._photo)
                self.longest[i] = max(self.longest[i], time.monotonic() - begun)
                self.right += 1

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)


def test_a_host_that_stops_the_head_for_a_second_makes_nobody_pay_for_it(made, photo):
    """Charged for the pause, one of sixteen would wait until each other has had a second too."""
    with made.service(queue=32) as service:
        asking = Asking(service.client, photo, 16)
        time.sleep(1.5)
        usual = max(asking.longest)
        os.kill(service.pids["head"], signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(service.pids["head"], signal.SIGCONT)
        before = asking.right
        time.sleep(5.0 + usual)
        asking.end()
    assert asking.right > before + 16, "all of them went on"
    assert max(asking.longest) < 1.0 + 2 * usual + 1.5, sorted(asking.longest)


@pytest.mark.parametrize("where", ["decoding", "the network"])
def test_a_pause_where_every_clock_is_the_hosts(start_inside, photo, monkeypatch, where):
    """As inside Gramine: a pause in the middle of somebody's turn reads as a second of work."""
    monkeypatch.setattr(computing, "Prices", partial(Prices, clock=time.monotonic))
    worker = start_inside(queue=32)
    turns, paused = iter(range(10**9)), 200

    def pausing(real):
        def turn(*arguments):
            if next(turns) == paused:
                time.sleep(1.0)
            return real(*arguments)

        return turn

    if where == "decoding":
        monkeypatch.setattr(computing, "decoded", pausing(decoded))
    else:
        weights = worker.worker._weights
        monkeypatch.setattr(weights, "program", pausing(weights.program))
    asking = Asking(worker.client, photo, 8)
    assert until(lambda: asking.right > paused, 30)
    time.sleep(4.0)
    asking.end()
    assert 1.0 < max(asking.longest) < 3.0, sorted(asking.longest)


def resident(pid: int) -> int:
    """Resident memory of a process in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(x for x in status.splitlines() if x.startswith("VmRSS:")).split()[1])


@pytest.mark.slow
def test_sixteen_clients_beside_a_host_that_kills_and_stops(made, photo):
    """A minute: each request is answered right or refused, within its time limit."""
    limit, wanted, over = 20.0, made.logits(photo), threading.Event()
    counts, late = Counter(), []
    options = ServeOptions(enclave=made.enclave, timeout=3.0, queue=32)

    def ask(service) -> None:
        while not over.is_set():
            begun = time.monotonic()
            try:
                with service.client(timeout=limit) as client:
                    while not over.is_set():
                        begun = time.monotonic()
                        answer = client.classify(photo)
                        counts["right" if torch.equal(answer.tensors[0], wanted) else "wrong"] += 1
            except (ServiceError, SessionError) as error:
                counts[getattr(error, "code", "session")] += 1
                time.sleep(0.05)
            if time.monotonic() - begun > limit + 10:
                late.append(time.monotonic() - begun)

    with Service(made.folder, options, key=made.key, insecure=True) as service:
        healed(service, made, photo, {})
        time.sleep(1.0)
        threads = [threading.Thread(target=ask, args=(service,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        time.sleep(5.0)
        before = {name: resident(pid) for name, pid in service.pids.items()}
        for victim, how in (
            ("tail", signal.SIGKILL),
            ("tail", signal.SIGSTOP),
            ("head", signal.SIGSTOP),
            ("head", signal.SIGKILL),
        ):
            pids = service.pids
            os.kill(pids[victim], how)
            healed(service, made, photo, {victim: pids[victim]})
            time.sleep(8.0)
        right = counts["right"]
        time.sleep(5.0)
        over.set()
        for thread in threads:
            thread.join(60)
        after = {name: resident(pid) for name, pid in service.pids.items()}
    assert not late
    assert counts["wrong"] == 0
    assert counts["right"] > right > 0, counts
    for name in before:
        assert after[name] <= 1.1 * before[name], (before, after)
