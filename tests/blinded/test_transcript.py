"""What the outside is sent tells nothing; and the tests would notice if it did."""

from __future__ import annotations

import pytest
import torch

from partopt.blinded import masks
from partopt.blinded.engine import Engine
from partopt.blinded.layers import Layer, Window
from partopt.blinded.outside import Worker
from partopt.blinded.ring import subtract, uniform
from partopt.blinded.transcript import Recorder, byte_uniformity, correlation

from .conftest import weights

LAYER = Layer("c", weights(4, 8, 3, 3), (8, 24, 24), 255, Window(padding=(1,) * 4))


def pictures() -> list[torch.Tensor]:
    """Two inputs as activations are: many zeros, the rest smooth."""
    ramp = torch.arange(24)[:, None] * torch.arange(24)[None] // 3
    first = torch.stack([(ramp + 9 * c - 60).clamp(0, 255) for c in range(8)])
    return [first[None].to(torch.int32), first.flip(2)[None].to(torch.int32)]


def transcript() -> list[torch.Tensor]:
    recorder = Recorder(Worker([LAYER]))
    engine = Engine([LAYER], recorder)
    for x in pictures():
        engine.request().compute("c", x)
    return recorder.sent["c"]


def test_a_transcript_is_noise():
    sent = transcript()
    for values, x in zip(sent, pictures(), strict=True):
        assert byte_uniformity(values) > 1e-6
        assert abs(correlation(values, x)) < 5
    assert byte_uniformity(subtract(*sent)) > 1e-6
    assert abs(correlation(subtract(*sent), subtract(*pictures()))) < 5


def test_a_mask_used_twice_is_noticed(monkeypatch):
    """Each frame alone is still uniform; the two together are not."""
    same = uniform((1, *LAYER.shape))
    monkeypatch.setattr(masks, "uniform", lambda shape: same.clone())
    sent = transcript()
    assert all(byte_uniformity(values) > 1e-6 for values in sent)
    assert byte_uniformity(subtract(*sent)) < 1e-12
    assert abs(correlation(subtract(*sent), subtract(*pictures()))) > 50


@pytest.mark.parametrize("share", [0.8, 0.9])
def test_a_mask_that_covers_a_part_of_the_ring_is_noticed(monkeypatch, share):
    def part(shape):
        top = int(2**32 * share) - 2**31
        return torch.randint(-(2**31), top, shape).to(torch.int32)

    monkeypatch.setattr(masks, "uniform", part)
    assert min(byte_uniformity(v) for v in transcript()) < 1e-5


def test_values_in_the_clear_are_noticed():
    for x in pictures():
        assert byte_uniformity(x) < 1e-12
        assert correlation(x, x) > 50
    assert correlation(torch.ones(9), torch.arange(9)) == 0


def test_too_few_values_are_not_judged():
    with pytest.raises(ValueError, match="1,300"):
        byte_uniformity(uniform((1299,)))
    low = [byte_uniformity(uniform((1300,))) for _ in range(60)]
    assert 0.1 < sum(p < 0.5 for p in low) / 60 < 0.9
