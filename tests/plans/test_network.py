from __future__ import annotations

import pytest
import torch
from torch import nn

from partopt.blinded.engine import Engine
from partopt.blinded.masks import Bank
from partopt.blinded.outside import Worker
from partopt.blinded.ring import uniform
from partopt.blinded.transcript import Recorder, byte_uniformity, correlation
from partopt.errors import DataError, IntegrityError, PlanError
from partopt.graph.build import trace
from partopt.plans.accuracy import accuracy
from partopt.plans.calibration import calibrate
from partopt.plans.network import blinded_names, depthwise, integer_network
from partopt.plans.placement import Plan


def engine_for(network, names, outside=None):
    layers = [network.layers[n].layer for n in names]
    return Engine(layers, outside or Worker(layers), Bank(layers))


def test_the_blinded_network_equals_the_integer_reference_bit_for_bit(made):
    names = list(made.network.layers)
    engine = engine_for(made.network, names)
    for images in (made.images[:3], made.images[40:41], 9 * made.images[:2]):
        found = made.network.run(images, names, engine.request(len(images)).compute)
        assert torch.equal(found, made.network.reference(images, names))
    assert engine.counts.failed == 0


def test_any_plan_equals_its_reference(made):
    e, b = "enclave", "blinded"
    for placements in ((b,) * 7, (e, b, e, b, e, b, e), (e, b, b, "clear", "clear", e, b)):
        names = blinded_names(made.network, made.blocks, Plan(placements), depthwise)
        engine = engine_for(made.network, names)
        found = made.network.run(made.images[:2], names, engine.request(2).compute)
        assert torch.equal(found, made.network.reference(made.images[:2], names))


def test_nothing_in_integers_is_the_model(made):
    found = made.network.run(made.images, (), None)
    assert torch.equal(found, made.graph.module(made.images))


def test_integers_are_near_the_model_and_agree_with_it(made):
    names = list(made.network.layers)
    with torch.no_grad():
        truth = made.graph.module(made.images)
    found = made.network.reference(made.images, names)
    assert not torch.equal(found, truth)
    assert float((found - truth).abs().max()) < 0.03 * float(truth.std())
    result = accuracy(
        made.graph.module, lambda x: made.network.reference(x, names), made.images[32:].split(8)
    )
    assert result.agreement >= 0.9
    assert result.drop == pytest.approx(1 - result.agreement)


def test_what_cannot_be_blinded_says_why(made):
    assert set(made.network.inside) == {"mirrored"}
    assert "reflect" in made.network.inside["mirrored"]
    with pytest.raises(PlanError, match="pads by 'reflect'"):
        made.network.run(made.images, ["mirrored"], None)
    with pytest.raises(PlanError, match="none of the network's"):
        made.network.run(made.images, ["nope"], None)
    assert made.network.blindable(made.blocks[4]) == []
    assert made.network.blindable(made.blocks[2], depthwise) == []
    assert len(made.network.blindable(made.blocks[2])) == 1


def test_scales_do_not_move_with_the_request(made):
    layer = made.network.layers["stem_0"]
    step = layer.step
    dark = layer.integers(made.images[:1] * 1e-3)
    assert int(dark.abs().max()) <= 2
    bright = layer.integers(made.images[:1] * 1e3)
    assert int(bright.abs().max()) == layer.layer.limit
    assert layer.step == step


def test_a_batch_norm_is_folded_into_its_convolution_alone(made):
    assert made.network.layers["stem_0"].norm == "stem_1"
    assert made.network.layers["res_two"].norm is None


def test_inputs_get_the_most_bits_that_cannot_wrap():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3000, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight.fill_(0.5)
    for scale, bits in ((1.0, 12), (0.0, 12)):
        images = torch.rand(4, 3000) - (0.5 if scale else 0.0)
        graph = trace(model.eval(), images)
        network = integer_network(graph.module, calibrate(graph.module, [images]))
        first = network.layers["_0"]
        signed = scale == 1.0
        assert first.layer.bound < 2**30
        larger = (2 ** (first.bits + 1 - signed) - 1) * 127 * 3000
        assert first.bits == bits or 2 * larger >= 2**31 - 1
        assert first.low == (-first.layer.limit if signed else 0)
        assert network.layers["_2"].low == 0


def test_a_layer_too_wide_for_8_bits_stays_inside():
    model = nn.Linear(70_000, 2)
    with torch.no_grad():
        model.weight.fill_(1.0)
    images = torch.rand(2, 70_000)
    graph = trace(nn.Sequential(model).eval(), images)
    network = integer_network(graph.module, calibrate(graph.module, [images]))
    assert not network.layers
    (reason,) = network.inside.values()
    assert "outputs can reach" in reason


def test_a_first_dimension_that_is_no_batch_stays_inside():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x.reshape(-1, 4)).reshape(-1, 8)

    images = torch.rand(3, 8)
    graph = trace(Folded().eval(), images)
    network = integer_network(graph.module, calibrate(graph.module, [images]))
    assert "not the batch" in network.inside["fc"]


def test_a_tampered_network_gives_no_answer(made):
    names = list(made.network.layers)
    layers = [made.network.layers[n].layer for n in names]
    honest = Worker(layers)

    for victim in names:

        def outside(name, masked, victim=victim):
            answer = honest(name, masked)
            if name == victim:
                answer.view(-1)[-1] ^= 1 << 20
            return answer

        engine = engine_for(made.network, names, outside)
        with pytest.raises(IntegrityError) as caught:
            made.network.run(made.images[:1], names, engine.request().compute)
        assert caught.value.layer == victim


def test_the_transcript_of_a_network_is_noise(made):
    names = list(made.network.layers)
    layers = [made.network.layers[n].layer for n in names]
    recorder = Recorder(Worker(layers))
    engine = engine_for(made.network, names, recorder)
    inputs: dict[str, torch.Tensor] = {}

    def compute(name, values):
        inputs[name] = values
        return request.compute(name, values)

    request = engine.request(16)
    made.network.run(made.images[:16], names, compute)
    for name in names:
        (sent,) = recorder.sent[name]
        assert sent.numel() < 1300 or byte_uniformity(sent) > 1e-6
        assert abs(correlation(sent, inputs[name])) < 5.5
    again = engine.request(16)
    made.network.run(made.images[:16], names, again.compute)
    first, second = recorder.sent["stem_0"]
    assert byte_uniformity(first - second) > 1e-6
    assert byte_uniformity(uniform(tuple(first.shape))) > 1e-6


def test_values_that_are_no_numbers_are_refused(made):
    bad = made.images[:1].clone()
    bad[0, 0, 3, 3] = float("nan")
    with pytest.raises(PlanError, match="not a number"):
        made.network.reference(bad, ["stem_0"])
    with pytest.raises(PlanError, match="not finite"):
        calibrate(made.graph.module, [bad * float("inf")])
    with pytest.raises(DataError, match="no images"):
        calibrate(made.graph.module, [])


def test_a_module_with_a_forward_or_hook_of_its_own_stays_inside():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    images = torch.rand(2, 4)
    hooked = nn.Linear(4, 4)
    model = nn.Sequential(Doubled(4, 4), hooked).eval()
    graph = trace(model, images, leaf_modules=(Doubled,))
    module = graph.module
    target = next(n for n in module.graph.nodes if n.name == "_1").target
    module.get_submodule(target).register_forward_hook(lambda m, i, o: o + 1)
    with pytest.raises(DataError, match="no layer"):
        calibrate(module, [images])
