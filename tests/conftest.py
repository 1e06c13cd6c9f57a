from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line does, before torch is there
os.environ.setdefault("COLUMNS", "160")

import numpy as np
import pytest
import torch
from torch import nn

from partopt.images.dead_leaves import dead_leaves
from partopt.models.load import LoadedModel
from partopt.preprocessing import Preprocessing

# What tests of services run head workers in: native, or gramine-direct (`make test-gramine`).
ENCLAVE = os.environ.get("PARTOPT_TEST_ENCLAVE", "native")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("PARTOPT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    if not (SHARED / "weights" / "mobilenet_v2.pth").is_file():
        pytest.skip(f"no photos and weights in {SHARED.name}/ beside the project")
    return SHARED


@pytest.fixture(scope="session")
def enclave() -> str:
    """What head workers run in."""
    if ENCLAVE not in ("native", "gramine-direct"):
        raise pytest.UsageError(f"PARTOPT_TEST_ENCLAVE is {ENCLAVE!r}; use native, gramine-direct")
    if ENCLAVE != "native" and shutil.which(ENCLAVE) is None:
        pytest.skip(f"PARTOPT_TEST_ENCLAVE is {ENCLAVE}, which is not on PATH")
    return ENCLAVE


@pytest.fixture(scope="session")
def leaves() -> np.ndarray:
    """160 generated images of 48x48."""
    return dead_leaves(160, 48, seed=3)


class Tiny(nn.Module):
    """Three stages, one in-place activation on a value that is read again, one residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(inplace=True))
        self.down = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(inplace=True))
        self.res = nn.Conv2d(16, 16, 3, 1, 1)
        self.late = nn.Sequential(nn.Conv2d(16, 8, 8, 8), nn.BatchNorm2d(8), nn.Tanh())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(self.stem(x))
        y = self.res(x)
        z = torch.relu_(y)
        x = x + z + y
        x = self.pool(self.late(x))
        return self.fc(torch.flatten(x, 1))


@pytest.fixture
def tiny() -> Tiny:
    torch.manual_seed(1)
    return Tiny().eval()


@pytest.fixture
def tiny_loaded(tiny) -> LoadedModel:
    return LoadedModel(
        spec="tests:tiny",
        module=tiny,
        preprocessing=Preprocessing(32, 36, (0.5,) * 3, (0.5,) * 3),
        weights="random (seed 1)",
        weights_hash="0" * 64,
    )


@pytest.fixture
def photo_folder(tmp_path) -> Path:
    """60 generated pictures in two class folders, one corrupt file and one duplicate."""
    from PIL import Image

    folder = tmp_path / "photos"
    for i, image in enumerate(dead_leaves(60, 40, seed=9)):
        path = folder / f"class{i % 2}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    (folder / "class0" / "bad.jpg").write_bytes(b"\xff\xd8 not a picture")
    (folder / "copy.png").write_bytes((folder / "class0" / "000.png").read_bytes())
    return folder


@pytest.fixture
def later_is_slower(monkeypatch):
    """Times of cuts that grow with them: which could win must not hang on this machine's noise."""
    from partopt.optimizer import find
    from partopt.profilers.base import CutLatency, Duration

    timed = find.profile

    def fixed(graph, cuts, conditions, progress):
        profile = timed(graph, cuts, conditions, progress=progress)

        def of(ms):
            return Duration(ms=ms, noise_ms=0.0, basis="measured", backend="test")

        times = [
            CutLatency(enclave=of(c.node), handoff=of(1), accelerator=of(1), total=of(c.node + 2))
            for c in cuts
        ]
        return replace(profile, cuts=times, full_enclave=of(100), full_accelerator=of(1))

    monkeypatch.setattr(find, "profile", fixed)
