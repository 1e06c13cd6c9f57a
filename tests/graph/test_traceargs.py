import pytest
import torch
from torch import nn

from partopt.cli import run
from partopt.config import ModelInfo, PreprocessingInfo, SplitConfig
from partopt.errors import UsageError
from partopt.graph.traceargs import Tracing, leaf_classes
from partopt.images.load import Split
from partopt.models.load import load_model
from partopt.optimizer.budgets import BUDGETS, Budget

NET = """
import torch
from torch import nn
class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)
    def forward(self, x):
        return self.conv(x) if float(x.flatten()[0]) > 1e9 else self.conv(x) * 2
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.inner, self.b = nn.Conv2d(3, 4, 3), Inner(), nn.Conv2d(4, 4, 3)
    def forward(self, x, twice=True):
        x = self.a(x)
        x = self.inner(x) if twice else x
        return self.b(x).mean((2, 3))
"""


@pytest.fixture
def net(tmp_path, monkeypatch):
    (tmp_path / "tracenet.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "tracenet:Net"


def test_text_becomes_values():
    made = Tracing.parse("mask=None, flag=false,n=3,x=-1.5,word=mean,quoted='none'", " a.B,C ")
    assert dict(made.concrete_args) == {
        "mask": None,
        "flag": False,
        "n": 3,
        "x": -1.5,
        "word": "mean",
        "quoted": "none",
    }
    assert made.leaf_modules == ("a.B", "C")
    assert Tracing.parse(None, None) == Tracing()


@pytest.mark.parametrize("text", ["mask", "=1", "a b=1", "a=1,a=2"])
def test_text_that_is_none(text):
    with pytest.raises(UsageError, match=r"`concrete_args` got .* use NAME=VALUE"):
        Tracing.parse(text, None)


def test_classes_are_those_of_the_model():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    assert leaf_classes(model, ["ReLU", "torch.nn.modules.conv.Conv2d"]) == [nn.ReLU, nn.Conv2d]
    with pytest.raises(UsageError, match=r"`leaf_modules` got 'RelU'.*nearest: ReLU"):
        leaf_classes(model, ["RelU"])
    with pytest.raises(UsageError, match="of which the model has none"):
        leaf_classes(model, ["os.path"])  # nothing is imported


def test_the_command_line_takes_both(net, capsys):
    assert run(["cuts", net, "--input-size", "32"]) == 1
    said = capsys.readouterr().err
    assert "leaf_modules" in said
    assert "concrete_args" in said
    assert run(["cuts", net, "--input-size", "32", "--leaf-modules", "tracenet.Inner"]) == 0
    assert "inner" in capsys.readouterr().out
    assert run(["cuts", net, "--input-size", "32", "--concrete-args", "twice=false"]) == 0
    assert "inner" not in capsys.readouterr().out
    assert run(["cuts", net, "--concrete-args", "thrice=1"]) == 2
    assert "nearest: twice" in capsys.readouterr().err


def test_they_are_stored_and_used_again(net, tmp_path, monkeypatch):
    monkeypatch.setitem(
        BUDGETS,
        "quick",
        Budget("quick", "screening", Split(24, 8, 8), 32, 4, {"linear": {"max_cells": 2000}}),
    )
    arguments = [
        "--input-size",
        "32",
        "--cuts",
        "a",
        "--attackers",
        "linear",
        "--budget",
        "quick",
        "--repetitions",
        "2",
        "--ssim",
        "1",
        "--resolution",
        "16",
        "--enclave",
        "native",
        "--storage",
        str(tmp_path / "s.journal"),
    ]
    out = tmp_path / "n.split.json"
    given = ["--concrete-args", "twice=false", "--weights", "none"]
    assert run(["find", "--model", net, *arguments, *given, "--out", str(out)]) == 0
    config = SplitConfig.read(out)
    assert config.model.concrete_args == {"twice": False}
    export = ["export", str(out), "--out", str(tmp_path / "bundle")]
    assert run([*export, "--accept-screening", "--trust-model"]) == 0


def test_old_split_configs_have_neither():
    fields = {
        "spec": "m",
        "weights": "w",
        "weights_hash": "0",
        "random_weights": False,
        "graph_hash": "0",
        "traced_by": "torch.fx",
        "input_shape": [1],
        "input_dtype": "float32",
        "preprocessing": PreprocessingInfo(
            input_size=1, resize=1, mean=[0], std=[1], interpolation="bilinear", source="s"
        ),
    }
    info = ModelInfo(**fields)
    assert (info.concrete_args, info.leaf_modules) == ({}, [])
    kept = ModelInfo(**fields, concrete_args={"a": None, "b": True, "c": 1, "d": 1.5, "e": "x"})
    again = ModelInfo.model_validate_json(kept.model_dump_json())
    assert [type(v) for v in again.concrete_args.values()] == [type(None), bool, int, float, str]


def test_an_exported_file_takes_neither(tmp_path, tiny):
    path = tmp_path / "t.pt2"
    torch.export.save(torch.export.export(tiny, (torch.zeros(1, 3, 32, 32),)), path)
    with pytest.raises(UsageError, match="traced already"):
        load_model(str(path), trust_model=True, tracing=Tracing({"a": None}))
