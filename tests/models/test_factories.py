"""Factories of the user's own: each slip is one sentence that names the place."""

import sys

import pytest
import torch

from partopt.errors import UsageError
from partopt.models.load import load_model

KINDS = """
import sys
import torch
from torch import nn
class Sized(nn.Module):
    def __init__(self, c=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(c, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
    def forward(self, x):
        return self.body(x).mean((2, 3))
def base(c=3):
    torch.manual_seed(0)
    return Sized(c)
def half(): return base().half()
def double(): return base().double()
def grey(): return base(1)
def four(): return base(4)
def volume(): return nn.Sequential(nn.Conv3d(1, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
class Two(nn.Module):
    def forward(self, left, right): return (left + right).mean((2, 3))
def two(): return Two()
class DictIn(nn.Module):
    def forward(self, batch): return batch["image"].mean((2, 3))
def dict_in(): return DictIn()
class Raises(nn.Module):
    def forward(self, x):
        raise KeyError("no such part")
def raises(): return Raises()
class Nothing(nn.Module):
    def forward(self, x): pass
def nothing(): return Nothing()
def quantised():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})
def scripted(): return torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3)))
def no_stats():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
def lazy(): return nn.Sequential(nn.LazyConv2d(4, 3))
def meta():
    with torch.device("meta"): return base()
def needs_args(depth, *, width): return base()
def fails(): raise ValueError("no config file\\nsecond line")
def leaves(): sys.exit(3)
def a_class(): return nn.Sequential
def a_pair(): return base(), None
def none(): base()
instance = base()
def large(): return nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.Conv2d(4, 4, 9))
def compiled(): return torch.compile(base())
def parallel(): return nn.DataParallel(base())
def averaged(): return torch.optim.swa_utils.AveragedModel(base())
def inside():
    net = base(); net.body = torch.compile(net.body); return nn.DataParallel(net)
def train_mode(): return base().train()
def loud():
    print("hello"); torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False)
    return base().float()
class Scaled(Sized):
    factor = 1.0
    def __init__(self): super().__init__(); self.scale = torch.full((1,), self.factor)
    def forward(self, x): return super().forward(x) * self.scale
def scaled(): torch.manual_seed(0); Scaled.factor = 1.0; return Scaled()
def doubled(): torch.manual_seed(0); Scaled.factor = 2.0; return Scaled()
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "fackinds.py").write_text(KINDS)
    (tmp_path / "facbroken.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "facmissing.py").write_text("import torch\nimport no_such_package_here\n")
    (tmp_path / "facscript.py").write_text("import sys\nsys.exit('usage: train')\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith("fac")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("half", "`body.0.weight` is float16; partopt runs float32"),
        ("double", "is float64"),
        ("grey", r"\(1, 3, 32, 32\): .*it takes 1 channel, and partopt sends three"),
        ("four", "it takes 4 channels"),
        ("volume", "one float32 image of shape .*takes volumes"),
        ("two", "forward wants left, right"),
        ("dict_in", r"IndexError at .*fackinds.py:23"),
        ("raises", r"KeyError at .*fackinds.py:27: 'no such part'"),
        ("nothing", "answers with NoneType"),
        ("quantised", "is quantised"),
        ("scripted", "is scripted"),
        ("no_stats", "batch norm `1` keeps no running statistics"),
        ("lazy", "has no shape yet"),
        ("meta", "is on the meta device"),
        ("needs_args", "wants the arguments depth, width"),
        ("fails", r"raised ValueError at .*fackinds.py:\d+: no config file$"),
        ("leaves", r"SystemExit \(3\) at .*fackinds.py:\d+"),
        ("a_class", "returned the class Sequential"),
        ("a_pair", "returned tuple"),
        ("none", "returned None"),
        ("instance", r"is a network \(Sized\) and no function"),
        ("large", "it runs at 224x224: use --input-size 224"),
        ("haf", r"has no 'haf' \(nearest: half\)"),
        ("half()", "without parentheses, fackinds:half"),
        ("", "give both sides of the colon"),
    ],
)
def test_slips_are_one_sentence(factory, words):
    with pytest.raises(UsageError, match=words) as raised:
        load_model(f"fackinds:{factory}", input_size=32)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("./fackinds.py:half", "name the module instead: fackinds:half"),
        ("fackinds.py:half", "name the module instead: fackinds:half"),
        ("sub/net.py:make", "name the module instead: sub.net:make"),
        ("../net.py:make", r"run in \.\. with net:make"),
        ("fackinds.half", "a factory of your own is written fackinds:half"),
        ("facbroken:f", r"SyntaxError at .*facbroken.py:2: .*mend it"),
        ("facmissing:f", r"facmissing.py:2: No module named .*install what it imports"),
        ("facscript:f", r"SystemExit \(usage: train\) at .*facscript.py:2.*__main__"),
        ("facnone:f", "run from the folder that holds it"),
        ("weights.pth", "give a file of its weights with --weights"),
        ("net.py", "give a factory as package.module:factory"),
    ],
)
def test_what_cannot_be_imported_says_where_and_what_to_do(spec, words):
    with pytest.raises(UsageError, match=words):
        load_model(spec)


@pytest.mark.parametrize("factory", ["compiled", "parallel", "averaged", "inside", "train_mode"])
def test_wrappers_are_taken_off(factory):
    plain = load_model("fackinds:base", input_size=32)
    loaded = load_model(f"fackinds:{factory}", input_size=32)
    assert not loaded.module.training
    assert loaded.weights_hash == plain.weights_hash


def test_users_code_leaves_torch_and_stdout_as_they_were(capsys):
    loaded = load_model("fackinds:loud", input_size=32)
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "hello\n")
    assert loaded.module(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


def test_the_hash_covers_tensors_that_no_state_dict_holds():
    assert load_model("fackinds:scaled", input_size=32).weights_hash != (
        load_model("fackinds:doubled", input_size=32).weights_hash
    )
    assert load_model("fackinds:scaled", input_size=32).weights_hash == (
        load_model("fackinds:scaled", input_size=32).weights_hash
    )


def test_ctrl_c_in_users_code_is_no_slip(here):
    (here / "facstop.py").write_text("def make():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_model("facstop:make")
