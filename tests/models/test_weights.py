"""Checkpoints as people have them: which values end up in the network, and what is said of it."""

import io
import re
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from partopt.errors import WeightsError
from partopt.models import weights as files


class Net(nn.Module):
    """A convolution, a batch norm and a layer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn(self.conv(x)).mean((2, 3)))


class Inner(nn.Module):
    """A network whose own sub-modules are called as wrappers call theirs."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.module, self.model = Net(seed), Net(seed + 1)


class Tied(nn.Module):
    """A block under two names and a tied output layer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.b = nn.Conv2d(3, 8, 3)
        self.c = self.b
        self.enc, self.dec = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.dec.weight = self.enc.weight


def state(seed: int = 7, kind: type[nn.Module] = Net) -> dict[str, torch.Tensor]:
    return dict(kind(seed).state_dict())


def before(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + n: t for n, t in tensors.items()}


def loaded(content, tmp_path, key: str = "", module: nn.Module | None = None):
    path = tmp_path / "c.pth"
    torch.save(content, path)
    module = Net() if module is None else module
    return module, files.load(module, str(path) + key)


def same(module: nn.Module, wanted: dict[str, torch.Tensor]) -> bool:
    held = module.state_dict()
    return held.keys() == wanted.keys() and all(torch.equal(held[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "_orig_mod.",
        "module.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.",
        "net.",
        "_fsdp_wrapped_module.",
        "module.model.backbone.",
    ],
)
def test_prefixes_are_stripped_where_all_names_fit_without(tmp_path, prefix):
    module, done = loaded({"state_dict": before(prefix, state())}, tmp_path)
    assert same(module, state())
    assert done.label == "file: c.pth"
    assert done.notes == []


@pytest.mark.parametrize(
    "inside",
    [
        lambda n: n.replace("conv.", "conv._orig_mod."),
        lambda n: n.replace("fc.", "fc._fsdp_wrapped_module._checkpoint_wrapped_module."),
        lambda n: "module." + n.replace("bn.", "bn.module."),
    ],
)
def test_wrappers_around_parts_are_stripped(tmp_path, inside):
    module, _ = loaded({inside(n): t for n, t in state().items()}, tmp_path)
    assert same(module, state())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module.module."])
def test_a_networks_own_parts_called_module_and_model_keep_their_names(tmp_path, prefix):
    module, _ = loaded(before(prefix, state(kind=Inner)), tmp_path, module=Inner())
    assert same(module, state(kind=Inner))


def test_a_prefix_before_some_names_only_is_not_stripped(tmp_path):
    content = before("model.", state()) | {"loss.weight": torch.ones(2)}
    with pytest.raises(WeightsError, match=r"1 unknown|unknown.*`model` fits: .*c.pth#model"):
        loaded(content, tmp_path)
    module, done = loaded(content, tmp_path, "#model")
    assert same(module, state())
    assert done.label == "file: c.pth#model"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"net": s, "acc": 91.2, "epoch": 3},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {"model_state_dict": s, "loss": torch.tensor(0.1)},
        lambda s: {"model": s, "optimizer": {"state": {0: {"step": torch.tensor(1)}}}},
        lambda s: {
            "state_dict": before("model.", s),
            "pytorch-lightning_version": "2.0",
            "callbacks": {},
            "hyper_parameters": {"lr": 0.1},
        },
        lambda s: OrderedDict(before("module.", s)),
        lambda s: {"state_dict": s, "scaler": {"scale": 2.0}, "ema": None},
    ],
)
def test_the_models_dictionary_is_found(tmp_path, wrap):
    module, _ = loaded(wrap(state()), tmp_path)
    assert same(module, state())


@pytest.mark.parametrize(
    ("raw", "average"),
    [
        ("model", "ema"),
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("params", "params_ema"),
        ("state_dict", "ema_state_dict"),
        ("model", "modelEma"),
        ("g", "g_ema"),
    ],
)
def test_an_average_is_taken_and_said_and_the_other_can_be_named(tmp_path, raw, average):
    content = {raw: state(1), average: before("module.", state(2)), "epoch": 5}
    module, done = loaded(content, tmp_path)
    assert same(module, state(2))
    assert done.label == f"file: c.pth#{average}"
    assert f"`{average}`" in done.notes[0]
    assert f"c.pth#{raw} takes the other" in done.notes[0]
    module, done = loaded(content, tmp_path, f"#{raw}")
    assert same(module, state(1))
    assert (done.label, done.notes) == (f"file: c.pth#{raw}", [])


def test_an_averaged_model_is_loaded_as_itself(tmp_path):
    donor = torch.optim.swa_utils.AveragedModel(Net(3))
    module, done = loaded(donor.state_dict(), tmp_path)
    assert same(module, state(3))
    assert "1 counters" in done.notes[0]
    module, done = loaded({"model": state(1), "swa": donor.state_dict()}, tmp_path)
    assert same(module, state(3))
    assert done.label == "file: c.pth#swa"


def test_two_that_fit_and_differ_are_refused_by_name(tmp_path):
    with pytest.raises(WeightsError, match="`student` and `teacher` fit and differ"):
        loaded({"student": state(1), "teacher": state(2)}, tmp_path)
    module, _ = loaded({"student": state(1), "teacher": state(2)}, tmp_path, "#teacher")
    assert same(module, state(2))
    with pytest.raises(WeightsError, match="`ema` and `swa` fit and differ"):
        loaded({"model": state(1), "ema": state(2), "swa": state(3)}, tmp_path)
    module, _ = loaded({"model": state(1), "state_dict": state(1)}, tmp_path)
    assert same(module, state(1))


@pytest.mark.parametrize(
    "average",
    [
        {"shadow": dict(Net(2).named_parameters())},
        {"decay": 0.99, "shadow_params": [p.detach() for p in Net(2).parameters()]},
    ],
)
def test_an_average_that_cannot_be_loaded_is_not_passed_over(tmp_path, average):
    content = {"model": state(1), "ema": average}
    with pytest.raises(WeightsError, match=r"average over training `ema.shadow.*c.pth#model"):
        loaded(content, tmp_path)
    module, _ = loaded(content, tmp_path, "#model")
    assert same(module, state(1))


def test_the_top_level_can_be_named(tmp_path):
    content = {**state(1), "ema": state(2)}
    assert same(loaded(content, tmp_path)[0], state(2))
    module, done = loaded(content, tmp_path, "#.")
    assert same(module, state(1))
    assert done.label == "file: c.pth#."


def test_an_unknown_key_offers_the_nearest(tmp_path):
    with pytest.raises(WeightsError, match=r"no dictionary 'emma' \(nearest: ema\)"):
        loaded({"model": state(), "ema": state()}, tmp_path, "#emma")


def test_tied_tensors_are_satisfied_by_their_mates(tmp_path):
    save_model(Tied(5), str(tmp_path / "tied.safetensors"))
    module = Tied()
    files.load(module, str(tmp_path / "tied.safetensors"))
    assert same(module, state(5, Tied))
    assert module.dec.weight is module.enc.weight
    untied = state(5, Tied)
    untied["dec.weight"] = untied["dec.weight"] + 1
    with pytest.raises(WeightsError, match=r"1 not tied as in the model \(first: dec.weight\)"):
        loaded(untied, tmp_path, module=Tied())
    with pytest.raises(WeightsError, match="2 tensors are missing"):
        loaded(
            {n: t for n, t in state(5, Tied).items() if n[:3] in ("b.w", "c.w", "enc")},
            tmp_path,
            module=Tied(),
        )


def test_counters_may_be_left_out_and_nothing_else(tmp_path):
    counted = state() | {"total_ops": torch.zeros(1), "conv.total_params": torch.zeros(1)}
    module, done = loaded(before("module.", counted), tmp_path)
    assert same(module, state())
    assert "2 counters" in done.notes[0]
    with pytest.raises(WeightsError, match=r"0 tensors are missing, 1 unknown.*first: extra"):
        loaded(state() | {"extra": torch.zeros(1)}, tmp_path)
    fewer = {n: t for n, t in state().items() if n != "fc.bias"}
    with pytest.raises(WeightsError, match=r"1 tensors are missing.*first: fc.bias"):
        loaded(fewer, tmp_path)
    without = {n: t for n, t in state().items() if "num_batches" not in n}
    assert same(loaded(without, tmp_path)[0], state())


def test_other_dtypes_are_converted_and_said(tmp_path):
    half = {n: t.half() if t.is_floating_point() else t for n, t in state().items()}
    module, done = loaded(half, tmp_path)
    assert same(module, {n: t.float() if t.is_floating_point() else t for n, t in half.items()})
    assert "8 tensors are float16 in the file and float32 in the model" in done.notes[0]
    with pytest.raises(WeightsError, match=r"`fc.bias` \(complex64\) cannot be had as float32"):
        loaded(state() | {"fc.bias": torch.zeros(2, dtype=torch.complex64)}, tmp_path)
    counts = state() | {"bn.num_batches_tracked": torch.tensor(0.5)}
    with pytest.raises(WeightsError, match="cannot be had as int64"):
        loaded(counts, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_finite_numbers_are_refused(tmp_path, value):
    broken = state()
    broken["fc.weight"][0, 0] = value
    with pytest.raises(WeightsError, match=r"no finite numbers in 1 tensors \(first: fc.weight\)"):
        loaded(broken, tmp_path)


def test_what_would_need_unpickling_says_what_to_do(tmp_path):
    with pytest.raises(WeightsError, match=r"numpy values.*save the state dict alone"):
        loaded({"state_dict": state(), "best": np.float64(0.9)}, tmp_path)
    with pytest.raises(WeightsError, match=r"like a whole model.*save model.state_dict\(\)"):
        loaded(nn.Sequential(nn.Linear(2, 2)), tmp_path)


def test_files_of_other_kinds_are_told(tmp_path):
    def refused(name: str, words: str) -> None:
        with pytest.raises(WeightsError, match=words):
            files.load(Net(), str(tmp_path / name))

    buffer = io.BytesIO()
    torch.save(state(), buffer)
    (tmp_path / "torn.pth").write_bytes(buffer.getvalue()[:2000])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "bare.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "script.pt"))
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "program.pt2")
    refused("torn.pth", "torn or no weights file")
    refused("empty.pth", "is empty")
    refused("page.pth", "torn or no weights file")
    refused("list.pth", "no state dict but a list")
    refused("bare.pth", "no tensors by name")
    refused("script.pt", "TorchScript program")
    refused("program.pt2", "torch.export program")
    refused(".", "is a folder")
    refused("none.pth#model", "does not exist")


def test_the_content_counts_and_not_the_suffix(tmp_path):
    save_file(state(), tmp_path / "a.pth")
    torch.save(state(), tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        module = Net()
        files.load(module, str(tmp_path / name))
        assert same(module, state())


def test_a_file_may_have_a_hash_sign_in_its_name(tmp_path):
    torch.save({"model": state()}, tmp_path / "run#7.pth")
    module = Net()
    assert files.load(module, str(tmp_path / "run#7.pth")).label == "file: run#7.pth"
    files.load(module, str(tmp_path / "run#7.pth#model"))
    assert same(module, state())


def test_a_network_that_changes_what_it_loads_is_refused(tmp_path):
    class Sly(Net):
        def _load_from_state_dict(self, tensors, prefix, *args):
            tensors[prefix + "conv.weight"] = tensors[prefix + "conv.weight"] * 2
            super()._load_from_state_dict(tensors, prefix, *args)

    with pytest.raises(WeightsError, match=re.escape("the model changes `conv.weight`")):
        loaded(state(), tmp_path, module=Sly())
