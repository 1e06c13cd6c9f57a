import pickle
import re

import pytest
import torch
from safetensors.torch import save_file

from partopt.errors import TraceError, UsageError, WeightsError
from partopt.models.load import load_model
from partopt.models.request import ModelRequest


def test_random_weights_are_loud_and_seeded(monkeypatch):
    def no_network(*a, **k):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nonexistent/hub")
    one, two = load_model("squeezenet1_1"), load_model("squeezenet1_1")
    assert one.random_weights
    assert "RANDOM WEIGHTS" in one.warnings[0]
    assert one.weights_hash == two.weights_hash
    with pytest.raises(WeightsError, match=r"`weights` got 'DEFAULT'.*--weights"):
        load_model("squeezenet1_1", require_weights=True)


def test_unknown_models_offer_near_names():
    with pytest.raises(UsageError, match=r"nearest: .*resnet50"):
        load_model("resnet5O")
    with pytest.raises(UsageError, match=r"nearest: resnet50"):
        load_model("ResNet50")
    with pytest.raises(UsageError, match=r"'nope'.* \(nearest: \w+, \w+, \w+\)"):
        load_model("nope")
    with pytest.raises(UsageError, match="cannot be imported"):
        load_model("no_such_module:factory")


def test_names_of_arguments_are_held_before_anything_is_loaded():
    with pytest.raises(UsageError, match=r"`weigths` is no argument of load_model.*: weights"):
        load_model("squeezenet1_1", weigths="none")
    with pytest.raises(UsageError, match="`strict` is called `require_weights` now"):
        load_model("squeezenet1_1", strict=True)
    with pytest.raises(UsageError, match="`seed` got -1"):
        ModelRequest(spec="squeezenet1_1", seed=-1)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path, suffix):
    donor = load_model("squeezenet1_1", weights="none", seed=5)
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(
            {"state_dict": {f"module.{k}": v for k, v in donor.module.state_dict().items()}}, path
        )
    else:
        save_file(donor.module.state_dict(), path)
    loaded = load_model("squeezenet1_1", weights=str(path))
    assert loaded.weights_hash == donor.weights_hash
    assert not loaded.random_weights
    with pytest.raises(WeightsError, match="of another model"):
        load_model("resnet18", weights=str(path))


def test_a_pickle_in_place_of_weights_does_not_run(tmp_path):
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    torch.save({"x": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pth", "plain.pth"):
        with pytest.raises(WeightsError, match="without unpickling"):
            load_model("squeezenet1_1", weights=str(tmp_path / name))
    assert not marker.exists()


def test_default_weights_load_as_torchvision_loads_them(tmp_path, monkeypatch):
    """A stand-in for the download: what the hub would give is in its cache."""
    from partopt.graph.torchvision_cpu import models as tv

    for name in ("densenet121", "googlenet"):
        torch.manual_seed(3)
        extra = {"aux_logits": True, "transform_input": True} if name == "googlenet" else {}
        donor = tv.get_model(name, weights=None, **extra)
        state = donor.state_dict()
        if name == "densenet121":  # as published, with the old names
            state = {
                re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", k): v
                for k, v in state.items()
                if "num_batches" not in k
            }
            assert any(".norm.1." in k for k in state)
        url = tv.get_model_weights(name).DEFAULT.url
        hub = tmp_path / "checkpoints"
        hub.mkdir(exist_ok=True)
        torch.save(state, hub / url.rpartition("/")[2])
        torch.save(state, tmp_path / "file.pth")
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        loaded = load_model(name, require_weights=True)
        assert loaded.weights.startswith("default: torchvision")
        from_file = load_model(name, weights=str(tmp_path / "file.pth"))
        x = torch.rand(1, 3, 224, 224)
        with torch.no_grad():
            want = donor.eval()(x)
            assert torch.equal(loaded.module(x), want)
            assert torch.equal(from_file.module(x), want)


def test_a_pickle_in_the_hub_cache_does_not_run(tmp_path, monkeypatch):
    from partopt.graph.torchvision_cpu import models as tv

    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    name = tv.get_model_weights("squeezenet1_1").DEFAULT.url.rpartition("/")[2]
    (tmp_path / "checkpoints").mkdir()
    torch.save({"x": Bomb()}, tmp_path / "checkpoints" / name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match="cannot be used"):
        load_model("squeezenet1_1")
    assert not marker.exists()


def test_a_dictionary_that_was_chosen_is_taken_again_from_a_file_of_that_name(tmp_path):
    from types import SimpleNamespace

    from partopt.models.stored import load_stored

    raw, average = (load_model("squeezenet1_1", weights="none", seed=s) for s in (1, 2))
    path = tmp_path / "w.pth"
    torch.save({"model": raw.module.state_dict(), "ema": average.module.state_dict()}, path)
    assert load_model("squeezenet1_1", weights=str(path)).weights_hash == average.weights_hash
    chosen = load_model("squeezenet1_1", weights=f"{path}#model", input_size=64)
    assert chosen.weights == "file: w.pth#model"
    stored = SimpleNamespace(
        spec="squeezenet1_1",
        weights=chosen.weights,
        random_weights=False,
        preprocessing=chosen.preprocessing,
        concrete_args={},
        leaf_modules=[],
    )
    config = SimpleNamespace(model=stored, seed=0)
    assert load_stored(config, weights=str(path)).weights_hash == raw.weights_hash
    other = tmp_path / "other.pth"
    torch.save(average.module.state_dict(), other)
    assert load_stored(config, weights=str(other)).weights_hash == average.weights_hash


def test_missing_weights_file():
    with pytest.raises(WeightsError, match="does not exist"):
        load_model("squeezenet1_1", weights="/no/such.pth")


def test_preprocessing_from_metadata_and_overrides():
    b4 = load_model("efficientnet_b4", weights="none").preprocessing
    assert (b4.input_size, b4.resize, b4.interpolation) == (380, 384, "bicubic")
    own = load_model("mobilenet_v2", weights="none", mean=[0.5], std=[0.5], input_size=160)
    assert own.preprocessing.mean == (0.5, 0.5, 0.5)
    assert own.preprocessing.input_size == 160
    assert own.preprocessing.source == "given"
    with pytest.raises(UsageError, match="`std`"):
        load_model("mobilenet_v2", weights="none", std=[0.5, 0.0, 0.5])


def test_pt2_needs_trust(tmp_path, tiny):
    path = tmp_path / "tiny.pt2"
    program = torch.export.export(tiny, (torch.zeros(1, 3, 32, 32),), strict=False)
    torch.export.save(program, path)
    with pytest.raises(UsageError, match="--trust-model"):
        load_model(str(path))
    loaded = load_model(str(path), trust_model=True)
    graph = loaded.trace()
    assert graph.source == "torch.export"
    x = torch.randn(2, 3, 32, 32)
    from partopt.graph.splitting import split

    with torch.no_grad():
        for cut in graph.cuts("all"):
            head, tail = split(graph, cut)
            assert torch.equal(tail(*head(x)), tiny(x)), cut.name


def test_a_model_exported_in_training_mode_is_refused(tmp_path, tiny):
    path = tmp_path / "train.pt2"
    program = torch.export.export(tiny.train(), (torch.zeros(2, 3, 32, 32),), strict=False)
    torch.export.save(program, path)
    with pytest.raises(TraceError, match="training mode"):
        load_model(str(path), trust_model=True).trace()


def test_factory_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 2))\n"  # noqa: E501
        "def wrong():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    loaded = load_model("mynet:make", input_size=32)
    assert [c.name for c in loaded.trace().cuts()] == ["0", "1"]
    with pytest.raises(UsageError, match="returned int"):
        load_model("mynet:wrong")
