from __future__ import annotations

import pytest
import torch

from partopt.blinded.engine import Engine
from partopt.blinded.layers import Layer
from partopt.blinded.masks import Bank
from partopt.blinded.outside import Worker
from partopt.blinded.reference import integers
from partopt.errors import BackendError, BlindingError, FrameError, IntegrityError, ServiceError

from .conftest import LAYERS, inputs

ALL = list(LAYERS.values())
ONE = LAYERS["grouped"]


class Altered:
    """An outside that changes what it returns."""

    def __init__(self, change) -> None:
        self.change = change
        self.honest = Worker(ALL)

    def __call__(self, name, masked):
        return self.change(self.honest(name, masked))


def test_every_layer_equals_the_integer_reference():
    engine = Engine(ALL, Worker(ALL), Bank(ALL, capacity=2))
    engine.bank.fill()
    for images in (1, 3):
        request = engine.request(images)
        for layer in ALL:
            x = inputs(layer, images)
            found = request.compute(layer.name, x)
            assert found.dtype == torch.int32
            assert torch.equal(found.to(torch.int64), integers(layer, x))
    assert engine.counts.requests == 2
    assert engine.counts.failed == 0
    assert all(s > 0 for phases in engine.counts.seconds.values() for s in phases.values())


def bump(answer):
    answer.view(-1)[5] += 1
    return answer


@pytest.mark.parametrize(
    "change",
    [
        bump,
        torch.zeros_like,
        lambda a: a.flip(0),
        lambda a: a[:1],
        lambda a: a.to(torch.int64),
        lambda a: a.to(torch.float32),
        lambda a: a[..., :-1],
        lambda a: None,
        lambda a: a.to("meta"),
    ],
    ids=["bump", "zeros", "swapped", "fewer", "int64", "float", "narrow", "none", "meta"],
)
def test_a_wrong_answer_ends_the_request_and_is_counted(change):
    engine = Engine([ONE, LAYERS["linear"]], Altered(change))
    request = engine.request(2)
    with pytest.raises(IntegrityError) as caught:
        request.compute("grouped", inputs(ONE))
    assert caught.value.layer == "grouped"
    assert engine.counts.failed == 1
    with pytest.raises(BlindingError, match="request is over"):
        request.compute("linear", inputs(LAYERS["linear"]))


def test_an_outside_that_dies_ends_the_request():
    def gone(name, masked):
        raise ConnectionError("gone")

    engine = Engine([ONE], gone)
    request = engine.request(2)
    with pytest.raises(ConnectionError):
        request.compute("grouped", inputs(ONE))
    with pytest.raises(BlindingError, match="over"):
        request.compute("grouped", inputs(ONE))
    assert engine.counts.failed == 0


def test_what_is_changed_after_the_check_was_begun_does_not_matter():
    """The host may go on writing to the area that its answer lies in."""
    areas = []

    def sharing(name, masked):
        areas.append(honest(name, masked))
        return areas[-1]

    honest = Worker([ONE])
    x = inputs(ONE)
    found = Engine([ONE], sharing).request(2).compute("grouped", x)
    areas[0].fill_(7)
    assert torch.equal(found.to(torch.int64), integers(ONE, x))


def test_values_beyond_the_proof_are_refused():
    engine = Engine([ONE], Worker([ONE]))
    for bad in (ONE.limit + 1, -ONE.limit - 1, -(2**31)):
        x = inputs(ONE)
        x[1, 2, 3, 3] = bad
        with pytest.raises(BlindingError, match="proved for magnitudes up to 4095"):
            engine.request(2).compute("grouped", x)
    for x in (inputs(ONE, 1), inputs(ONE).to(torch.int64), inputs(ONE)[:, :2]):
        with pytest.raises(BlindingError, match="use int32"):
            engine.request(2).compute("grouped", x)


def test_a_layer_that_could_wrap_never_gets_into_an_engine():
    wide = Layer("wide", torch.full((1, 64), 127, dtype=torch.int8), (64,), 2**20)
    with pytest.raises(BlindingError, match="cannot be blinded"):
        Engine([wide], Worker([wide]))


def test_a_bank_of_other_layers_or_two_of_one_name_are_refused():
    with pytest.raises(BlindingError, match="twice"):
        Engine([ONE, ONE], Worker([ONE]))
    with pytest.raises(BlindingError, match="other layers"):
        Engine([ONE], Worker([ONE]), Bank([LAYERS["plain"]]))


def test_a_busy_bank_makes_a_busy_engine():
    engine = Engine([ONE], Worker([ONE]), Bank([ONE], when_empty="busy"))
    with pytest.raises(ServiceError, match="ask again"):
        engine.request()
    assert engine.counts.requests == 0
    engine.bank.fill()
    engine.request()


def test_the_worker_refuses_what_is_not_its_own():
    worker = Worker([ONE])
    for name, masked in (
        ("nope", inputs(ONE)),
        ("grouped", inputs(ONE).to(torch.int64)),
        ("grouped", inputs(ONE)[:, :1]),
    ):
        with pytest.raises(FrameError, match="send a layer of this worker's"):
            worker(name, masked)
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="use 'cpu'"):
            Worker([ONE], "cuda")
