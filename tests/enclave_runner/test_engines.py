"""A bundle that ONNX Runtime runs: its answers, what it says of itself, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from partopt.enclave_runner.bench import bench
from partopt.enclave_runner.bundles import sides
from partopt.enclave_runner.bundles.bundle import read_bundle
from partopt.enclave_runner.lowering import choosing
from partopt.enclave_runner.lowering.choosing import Half, choose
from partopt.enclave_runner.program import ort_engine
from partopt.enclave_runner.program.parts import Part, weights_of
from partopt.enclave_runner.program.recording import record
from partopt.enclave_runner.program.trial import noise, written
from partopt.enclave_runner.serve_options import ServeOptions
from partopt.errors import BundleError, ExportError, UsageError


def test_it_answers_as_the_model_does(made_ort, pictures):
    with made_ort.service() as service, service.client() as client:
        for image in pictures[:3]:
            (answer,) = client.classify(image).tensors
            with torch.inference_mode():
                truth = made_ort.loaded.module(made_ort.prepared(image))
            torch.testing.assert_close(answer, truth, rtol=1e-4, atol=1e-5)
            assert answer.argmax() == truth.argmax()


def test_a_bundle_names_its_engines_and_how_far_they_are_off(made_ort):
    bundle = read_bundle(made_ort.folder)
    for use, tensors in (
        (bundle.head_engine, bundle.boundary),
        (bundle.tail_engine, bundle.answer),
    ):
        assert (use.name, use.images) == ("ort", 20)
        assert use.differences.keys() == {t.name for t in tensors}
        assert all(0 <= d < 1e-4 for d in use.differences.values())
        assert {"ort, layout", "ort, extended"} == use.tried.keys()
    assert "head/model.onnx.sealed" in bundle.files
    assert "head/weights.safetensors.sealed" not in bundle.files


def test_several_images_at_once_answer_as_each_alone(made_ort, pictures):
    part = Part.read(made_ort.folder / "head")
    run = ort_engine.load(made_ort.folder / "head", part, made_ort.key, 1)
    images = np.concatenate([made_ort.prepared(p).numpy() for p in pictures[:3]])
    (together,) = run(images)
    for i in range(3):
        np.testing.assert_allclose(together[i : i + 1], run(images[i : i + 1])[0], atol=1e-5)


def resealed(made, folder, change):
    """A copy whose head's model was changed by who has the key."""
    copy = made.copy(folder / "b")
    part = Part.read(copy / "head")
    model = onnx.load_model_from_string(weights_of(copy / "head", part, made.key))
    change(model)
    data = model.SerializeToString()
    part = replace(part, weights_sha256=hashlib.sha256(data).hexdigest())
    sides.seal_head(copy, part, data, made.key)
    return copy / "head"


def looped(model) -> None:
    body = onnx.helper.make_graph([], "body", [], [])
    model.graph.node.insert(0, onnx.helper.make_node("Loop", [], ["z"], body=body))


def outside(model) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def foreign(model) -> None:
    model.graph.node[0].domain = "evil"
    model.opset_import.append(onnx.helper.make_opsetid("evil", 1))


def enormous(model) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([1 << 20, 1 << 20])


def other_weights(model) -> None:
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    values = np.frombuffer(tensor.raw_data, np.float32) * 1.5
    tensor.raw_data = values.astype(np.float32).tobytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (looped, "loop or a branch"),
        (outside, "lies in another file"),
        (foreign, "operators of 'evil'"),
        (enormous, "1099511627776 elements"),
        (other_weights, "answers a trial otherwise than at export"),
    ],
)
def test_a_changed_model_is_refused_before_it_is_run(made_ort, tmp_path, monkeypatch, change, said):
    folder = resealed(made_ort, tmp_path, change)
    ran = []
    real = ort_engine.Session
    monkeypatch.setattr(ort_engine, "Session", lambda *a: ran.append(a) or real(*a))
    with pytest.raises(BundleError, match=said):
        ort_engine.load(folder, Part.read(folder), made_ort.key, 1)
    assert bool(ran) == (change is other_weights)


def test_changed_bytes_do_not_open(made_ort, tmp_path):
    copy = made_ort.copy(tmp_path / "b")
    path = copy / "head" / "model.onnx.sealed"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="does not open"):
        ort_engine.load(copy / "head", Part.read(copy / "head"), made_ort.key, 1)


def half(net: nn.Module) -> Half:
    torch.manual_seed(0)
    program = record(net.eval(), [torch.zeros(2, 3, 8, 8)], True)
    inputs = [[torch.rand(1, 3, 8, 8)] for _ in range(3)]
    return Half(plain=program, quick=program, dynamic=True, inputs=inputs, answers=None)


class Summed(nn.Module):
    def forward(self, x):
        return x.cumsum(2)


def test_what_cannot_be_written_falls_back_by_auto_alone():
    with pytest.raises(ExportError, match=r"aten\.cumsum\.default"):
        choose(half(Summed()), "ort")
    found = choose(half(Summed()), "auto")
    assert found.engine == "torch"
    assert "aten.cumsum.default" in found.tried["ort"]


def test_auto_never_takes_the_slower(monkeypatch):
    net = half(nn.Conv2d(3, 4, 3))
    monkeypatch.setattr(choosing, "_timed", lambda h, s: {"": 1.0, **dict.fromkeys(s, 2.0)})
    assert choose(net, "auto").engine == "torch"
    assert choose(net, "ort").engine == "ort"
    monkeypatch.setattr(choosing, "_timed", lambda h, s: {"": 1.0, **dict.fromkeys(s, 0.4)})
    assert choose(net, "auto").speedup == 2.5


def test_features_that_are_not_those_attacked_are_refused(monkeypatch):
    real = choosing.session_of

    def off(model):
        run = real(model)
        return lambda given: [a * np.float32(1.01) for a in run(given)]

    monkeypatch.setattr(choosing, "session_of", off)
    with pytest.raises(ExportError, match="attacks were made on the traced head's features"):
        choose(half(nn.Conv2d(3, 4, 3)), "ort")
    assert choose(half(nn.Conv2d(3, 4, 3)), "auto").engine == "torch"


def test_an_engine_that_there_is_none_of():
    with pytest.raises(UsageError, match="`tail-engine` got 'tvm'"):
        choosing.hold_engine("tail-engine", "tvm")


def test_noise_is_the_same_everywhere():
    x = noise((1, 3, 4, 4))
    assert x.dtype == np.float32
    assert 0.3 < x.std() < 0.7
    assert [round(float(v), 6) for v in x.ravel()[:3]] == KNOWN
    json.dumps(written("layout", [x]), allow_nan=False)


KNOWN = [0.578143, -0.154716, 0.833537]


def test_a_bench_of_it_has_baselines_by_the_same_engine(made_ort, photo):
    found = bench(
        made_ort.folder,
        photo,
        ServeOptions(enclave="native"),
        made_ort.key,
        insecure=True,
        requests=10,
        published=0,
    )
    assert {"whole in enclave", "whole outside"} <= found.baselines.keys()
    assert any("by ONNX Runtime too" in note for note in found.notes)
    assert any("timed the head by torch, this is ort" in note for note in found.notes)
