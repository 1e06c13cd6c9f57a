"""One small network, its split config and its bundle, made once."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load

from partopt.enclave_runner import orchestrator
from partopt.enclave_runner.bundles.export import Build, Source, export
from partopt.enclave_runner.client import Client
from partopt.enclave_runner.orchestrator import ServeOptions, Service
from partopt.enclave_runner.program.loading import load_program
from partopt.enclave_runner.program.onnx_file import read_onnx
from partopt.enclave_runner.program.parts import Part, weights_of
from partopt.enclave_runner.program.sealing import read_key
from partopt.enclave_runner.wire import areas, messages
from partopt.errors import ServiceError
from partopt.images.dead_leaves import dead_leaves
from partopt.images.load import Split
from partopt.models.load import LoadedModel, load_model
from partopt.optimizer.budgets import BUDGETS, Budget
from partopt.optimizer.find import find

# What services share on a host is named by the weights' hash: with a bias of its own, this run of
# the tests meets no other's.
NET = f"""
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(True))
        self.stem[0].bias.data[0] = {os.getpid()} / 2**24
        self.mid = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.late = nn.Conv2d(24, 32, 3, 2, 1)
        self.fc = nn.Linear(32, 5)
    def forward(self, x):
        x = self.mid(self.stem(x))
        x = torch.relu(self.late(x)).mean((2, 3))
        return self.fc(x)
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, 1, 1)
        self.b = nn.Conv2d(3, 3, 3, 1, 1)
        self.b.weight = self.a.weight
    def forward(self, x):
        return self.b(torch.relu(self.a(x)))
class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
    def forward(self, x, half=False):
        y = self.b(self.a(x))
        return {{"logits": y.mean((2, 3)), "more": (y, [y.amax((1, 2, 3))])}}
class Whole(Packed):
    def forward(self, x):
        y = self.b(self.a(x))
        return {{"logits": y.mean((2, 3)), "mean": y.mean()}}
class Spectral(Packed):
    def forward(self, x):
        return self.b(torch.fft.ifft2(torch.fft.fft2(self.a(x)) * 2).real)
"""
SMALL = Budget("quick", "screening", Split(24, 8, 8), 32, 4, {"linear": {"max_cells": 2000}})


def opened(folder: Path, part: Part, key: bytes):
    """What runs a part, by its engine."""
    return engine_of(part).load(folder, part, key, 1)


def engine_of(part: Part):
    return importlib.import_module(f"partopt.enclave_runner.program.{part.engine}_engine").ENGINE


@dataclass(frozen=True)
class Made:
    """A bundle, its key, the split config it was made of, and the unsplit model.

    ``enclave`` is what its head worker runs in where a test does not say so.
    """

    folder: Path
    key: bytes
    split: Path
    loaded: LoadedModel
    enclave: str

    def copy(self, to: Path) -> Path:
        return Path(shutil.copytree(self.folder, to))

    def logits(self, image: bytes) -> torch.Tensor:
        """The unsplit model's answer, with one thread as the workers have.

        Of a head that ONNX Runtime runs: the tail's answer to what it gives, to the bit.
        """
        return self.answer(self.prepared(image))

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        """The same of a prepared image."""
        if self.head.engine == "ort":
            tail = load_program(self.folder / "tail", Part.read(self.folder / "tail"), None)
            return tail(self.boundary(x))[0]
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                return self.loaded.module(x)
        finally:
            torch.set_num_threads(before)

    @property
    def head(self) -> Part:
        return Part.read(self.folder / "head")

    def boundary(self, x: torch.Tensor) -> torch.Tensor:
        """What the head gives away of a prepared image."""
        engine = importlib.import_module(
            f"partopt.enclave_runner.program.{self.head.engine}_engine"
        )
        (found,) = engine.load(self.folder / "head", self.head, self.key, 1)(x.numpy())
        return torch.from_numpy(found)

    def weights(self) -> dict[str, torch.Tensor]:
        """The head's, opened."""
        data = weights_of(self.folder / "head", self.head, self.key)
        if self.head.engine == "torch":
            return load(data)
        large = {n: t.raw for n, t in read_onnx(data).tensors.items() if len(t.raw) > 64}
        return {n: torch.frombuffer(bytearray(raw), dtype=torch.uint8) for n, raw in large.items()}

    def prepared(self, image: bytes) -> torch.Tensor:
        """The preprocessed image."""
        unit = self.loaded.preprocessing.to_unit(Image.open(io.BytesIO(image)))
        return self.loaded.preprocessing.normalise(
            torch.from_numpy(unit.copy())[None].float() / 255
        )

    def service(self, **options) -> Service:
        options = {"enclave": self.enclave, **options}
        return Service(self.folder, ServeOptions(**options), key=self.key, insecure=True)

    def on_the_host(self) -> list[Path]:
        """What services of this bundle have on the host, in shared memory and on disk."""
        identity = Part.read(self.folder / "head").weights_sha256[:16]
        folders = [areas.shm_folder(identity), areas.drop_folder(identity)]
        return [p for f in folders if f.exists() for p in (f, *f.iterdir())]

    def left_over(self) -> list[Path]:
        """Of that, what belongs to no living service; their folder is theirs."""
        found = self.on_the_host()
        held = [p for p in found if areas.alive(p.parent, p.name.partition(".")[0])]
        return [p for p in found if p not in held and p not in {h.parent for h in held}]


def png(seed: int = 0, size: int = 48) -> bytes:
    file = io.BytesIO()
    Image.fromarray(dead_leaves(1, size, seed)[0].transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def split_config(folder: Path, spec: str, cut: str) -> tuple[Path, LoadedModel]:
    """A split config of `spec` at `cut`, by a real find at a threshold that all cuts meet."""
    loaded = load_model(spec, weights="none", input_size=32)
    kept = BUDGETS["quick"]
    BUDGETS["quick"] = SMALL
    try:
        result = find(
            loaded,
            ssim=1.0,
            scale="raw",
            cuts=[cut],
            attackers=["linear"],
            repetitions=10,
            enclave="native",
            storage=str(folder / "s.journal"),
        )
    finally:
        BUDGETS["quick"] = kept
    assert result.found
    path = folder / f"{spec.rpartition(':')[2]}.split.json"
    result.config.write(path)
    return path, loaded


@pytest.fixture(scope="session")
def nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets")
    (folder / "runnets.py").write_text(NET)
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(folder))
    patch.setenv("PARTOPT_CACHE", str(folder / "cache"))
    yield folder
    patch.undo()


# `PARTOPT_TEST_ENGINE=ort pytest tests/enclave_runner`: all of it with the other engine.
ENGINE = os.environ.get("PARTOPT_TEST_ENGINE", "torch")


@pytest.fixture(scope="session")
def net_split(nets) -> tuple[Path, LoadedModel]:
    return split_config(nets, "runnets:Net", "mid.2")


def bundle_of(folder: Path, net_split: tuple[Path, LoadedModel], enclave: str, **build) -> Made:
    split, loaded = net_split
    done = export(
        Source(split=split, accept_screening=True, trust_model=True),
        folder,
        build=Build(batch=4, **build),
    )
    return Made(done.folder, read_key(done.key), split, loaded, enclave)


@pytest.fixture(scope="session")
def made(nets, net_split, enclave) -> Made:
    return bundle_of(nets / "bundle", net_split, enclave, engine=ENGINE)


@pytest.fixture(scope="session")
def made_ort(nets, net_split, enclave) -> Made:
    return bundle_of(nets / "bundle-ort", net_split, enclave, engine="ort", tail_engine="ort")


@pytest.fixture
def spawn():
    """Starts ``partopt ARGUMENTS``; what a failing test leaves behind is killed.

    The child minds Ctrl-C even where it is ignored here, as it is under ``nohup ... &``, unless
    `ignoring` says otherwise.
    """
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, ignoring: bool = False) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "partopt", *arguments]
        wanted = signal.SIG_IGN if ignoring else signal.default_int_handler
        before = signal.signal(signal.SIGINT, wanted)  # a child inherits what is ignored
        try:
            started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        finally:
            signal.signal(signal.SIGINT, before)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture
def serving(made, spawn):
    """Starts ``partopt serve`` on `made`; gives the process and the address that it says."""

    def start(*more: str, **how) -> tuple[subprocess.Popen[str], str]:
        process = spawn(
            "serve",
            str(made.folder),
            "--enclave",
            made.enclave,
            "--listen",
            "127.0.0.1:0",
            "--insecure-no-attestation",
            *more,
            **how,
        )
        for line in process.stderr:
            if line.startswith("serving"):
                return process, line.split(" at ")[1].split(";")[0]
        raise AssertionError("it did not serve")

    return start


@pytest.fixture(scope="session")
def photo() -> bytes:
    return png(3)


@pytest.fixture(scope="session")
def find_split(nets):
    """Makes the split config of a network and a cut."""
    return lambda spec, cut: split_config(nets, spec, cut)


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    return [png(seed) for seed in range(12)]


def windows(tensor: torch.Tensor, size: int = 32) -> set[bytes]:
    """Pieces of a tensor's bytes that would not stand elsewhere by chance."""
    raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    found = (raw[i : i + size] for i in range(0, len(raw) - size + 1, size))
    return {piece for piece in found if len(set(piece)) > 8}


class Tap:
    """A relay that keeps what passes."""

    def __init__(self, address) -> None:
        self.kept = bytearray()
        self.door = socket.create_server(("127.0.0.1", 0))
        self.address = self.door.getsockname()
        threading.Thread(target=self._run, args=(address,), daemon=True).start()

    def _run(self, address) -> None:
        with self.door:
            near, _ = self.door.accept()
        with near, socket.create_connection(address) as far:
            there = threading.Thread(target=self._pump, args=(near, far))
            there.start()
            self._pump(far, near)
            there.join()

    def _pump(self, a, b) -> None:
        try:
            while data := a.recv(65536):
                self.kept += data
                b.sendall(data)
        except OSError:
            pass
        for end in (a, b):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Crossing:
    """Records what the head worker gives away, and searches it."""

    def __init__(self, patch) -> None:
        self.patch = patch

    def record(self, made, photo, transport, enclave) -> dict[str, bytes]:
        """Every byte that the head worker gives away while it answers one image, by way."""
        taps = []
        plain = orchestrator.Service._start_tail

        def through_a_tap(self):
            taps.append(Tap(("127.0.0.1", self._tail_port)))
            self._tail_port = taps[-1].address[1]
            plain(self)

        lines = []
        read = messages.Control.read
        self.patch.setattr(orchestrator.Service, "_start_tail", through_a_tap)
        self.patch.setattr(messages.Control, "read", lambda c: lines.append(r := read(c)) or r)
        crossed = {}
        with made.service(transport=transport, in_flight=1, enclave=enclave) as service:
            front = Tap(service.address)
            part = Part.read(made.folder / "head")
            with Client(front.address, part.answers, part.limits, lambda hello: None) as client:
                for _ in range(2):
                    assert torch.equal(client.classify(photo).tensors[0], made.logits(photo))
                with pytest.raises(ServiceError):
                    client.classify(photo[:100])
            if transport == "shm":
                shared = service.meeting.descriptor
                crossed["shared memory"] = os.pread(shared, os.fstat(shared).st_size, 0)
            crossed["files"] = b"".join(p.read_bytes() for p in service.meeting.drop.glob("*"))
            crossed["client connection"] = bytes(front.kept)
            crossed["tail connection"] = bytes(taps[0].kept)
            crossed["stdout and logs"] = (
                service._head.said().encode() + service._tail.said().encode()
            )
            crossed["control connection"] = repr(lines).encode()
        return crossed

    def check(self, made, photo, crossed) -> None:
        everything = b"|".join(crossed.values())
        x = made.prepared(photo)
        boundary = windows(made.boundary(x))
        seen = sum(piece in everything for piece in boundary)
        assert seen > 0.9 * len(boundary), "the recorder sees what does cross"
        secrets = {
            "encoded image": {photo[i : i + 32] for i in range(0, len(photo) - 32, 32)},
            "preprocessed image": windows(x),
            "pixels": windows((x * 0 + x).mul(255).round().to(torch.uint8)),
            "key": {made.key, made.key.hex().encode()},
            **{name: windows(tensor) for name, tensor in made.weights().items()},
        }
        assert sum(map(len, secrets.values())) > 400
        for name, pieces in secrets.items():
            assert not any(piece in everything for piece in pieces), f"{name} crossed in the clear"


@pytest.fixture
def crossing(monkeypatch) -> Crossing:
    return Crossing(monkeypatch)
