"""Exported programs: what takes no square RGB image is refused at load, in one sentence."""

import zipfile

import pytest
import torch
from torch import nn

from partopt.errors import UsageError
from partopt.models.load import load_model


def net(channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(channels, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, 2)).eval()


class ByName(nn.Module):
    def forward(self, *, image):
        return image.mean((2, 3))


class ByKey(nn.Module):
    def forward(self, batch):
        return batch["image"].mean((2, 3))


class Two(nn.Module):
    def forward(self, a, b):
        return (a + b).mean((2, 3))


def image(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


@pytest.fixture
def saved(tmp_path):
    def save(module: nn.Module, *args, **kwargs) -> str:
        path = tmp_path / "m.pt2"
        torch.export.save(torch.export.export(module, args, kwargs, strict=False), path)
        return str(path)

    return save


@pytest.mark.parametrize(
    ("module", "args", "kwargs", "words"),
    [
        (net(), (image(1, 3, 64, 32),), {}, r"takes images of shape \(1, 3, 64, 32\)"),
        (net(1), (image(1, 1, 32, 32),), {}, r"takes images of shape \(1, 1, 32, 32\)"),
        (net(4), (image(1, 4, 32, 32),), {}, r"takes images of shape \(1, 4, 32, 32\)"),
        (net().half(), (image(1, 3, 32, 32).half(),), {}, "takes float16 of shape"),
        (
            nn.Sequential(nn.Embedding(9, 4)),
            (torch.zeros(1, 8, dtype=torch.long),),
            {},
            r"takes int64 of shape \(1, 8\)",
        ),
        (net(), (image(1, 3, 8, 8),), {}, "images of 8x8, and a side must have 16 to 4096"),
        (ByName(), (), {"image": image(1, 3, 32, 32)}, "takes the keyword arguments image"),
        (ByKey(), ({"image": image(1, 3, 32, 32)},), {}, "takes a dict of 1"),
        (Two(), (image(1, 3, 32, 32), image(1, 3, 32, 32)), {}, "takes 2 inputs"),
    ],
)
def test_other_inputs_are_refused_at_load(saved, module, args, kwargs, words):
    with pytest.raises(UsageError, match=words):
        load_model(saved(module, *args, **kwargs), trust_model=True)


def test_a_square_program_and_its_size_alone(saved):
    path = saved(net(), image(8, 3, 32, 32))
    loaded = load_model(path, trust_model=True)
    assert loaded.preprocessing.input_size == 32
    assert load_model(path, trust_model=True, input_size=32).weights_hash == loaded.weights_hash
    with pytest.raises(UsageError, match=r"`input_size` got 48, but .* exported for 32x32"):
        load_model(path, trust_model=True, input_size=48)


def test_what_is_no_exported_program_is_told(saved, tmp_path):
    whole = saved(net(), image(1, 3, 32, 32))

    def refused(words: str, data: bytes | None = None) -> None:
        path = tmp_path / "x.pt2"
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(UsageError, match=words) as raised:
            load_model(str(path), trust_model=True)
        assert str(raised.value).count("`model` got") == 1

    data = (tmp_path / "m.pt2").read_bytes()
    refused("x.pt2', which is torn or no torch.export file", data[:2000])
    refused("is empty", b"")
    with zipfile.ZipFile(whole) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("weight_0"))
    at = info.header_offset + 200
    refused("is damaged at", data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    torch.save(net().state_dict(), tmp_path / "x.pt2")
    refused("holds weights and no program.*--weights")
    with zipfile.ZipFile(tmp_path / "x.pt2", "w") as archive:
        archive.writestr("x/archive_format", "pt2")
    refused("is no torch.export file")
    with pytest.raises(UsageError, match="is a folder"):
        load_model(str(_folder(tmp_path)), trust_model=True)


def _folder(tmp_path):
    (tmp_path / "d.pt2").mkdir()
    return tmp_path / "d.pt2"
