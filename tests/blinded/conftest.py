from __future__ import annotations

import pytest
import torch

from partopt.blinded.layers import Layer, Window


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)


def inputs(layer: Layer, images: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (images, *layer.shape)
    return torch.randint(
        -layer.limit, layer.limit + 1, shape, dtype=torch.int32, generator=generator
    )


LAYERS = {
    "plain": Layer("plain", weights(5, 3, 3, 3), (3, 8, 8), 255, Window(padding=(1, 1, 1, 1))),
    "pointwise": Layer("pointwise", weights(7, 6, 1, 1), (6, 5, 4), 255, Window()),
    "strided": Layer(
        "strided", weights(4, 3, 3, 2), (3, 9, 11), 127, Window((2, 3), (1, 2), (1, 0, 2, 1))
    ),
    "grouped": Layer(
        "grouped", weights(6, 2, 3, 3), (4, 7, 7), 4095, Window((2, 2), padding=(1,) * 4, groups=2)
    ),
    "depthwise": Layer(
        "depthwise", weights(6, 1, 5, 5), (6, 9, 9), 255, Window(padding=(2,) * 4, groups=6)
    ),
    "dilated": Layer("dilated", weights(2, 2, 3, 3), (2, 12, 12), 255, Window(dilation=(3, 4))),
    "linear": Layer("linear", weights(9, 40), (40,), 2047),
    "tokens": Layer("tokens", weights(9, 12), (5, 12), 255),
}


@pytest.fixture(params=LAYERS, scope="session")
def layer(request) -> Layer:
    """Every kind of layer there is."""
    return LAYERS[request.param]
