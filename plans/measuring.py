"""What each placement of each block costs, by one instrumented pass for each kind of plan.

One pass has everything inside, one has every layer blinded that can be; both are timed node by node
and repeated in turn. No plan is run for its own cost. Times are this machine's, without an enclave;
the outside is this machine too, unless a `Setting` says otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from ..blinded.engine import Engine
from ..blinded.layers import Layer
from ..blinded.masks import Pad
from .blocks import Block
from .network import IntegerNetwork
from .placement import BlockCost, Costs


def same_speed(block: Block, milliseconds: float) -> float:
    """An outside that is as fast as the inside."""
    return milliseconds


@dataclass(frozen=True)
class Setting:
    """What the times of a network's own passes do not tell.

    Attributes:
        handoff: Milliseconds that a number of bytes takes one way.
        clear: Milliseconds of a block outside, from what it takes inside.
        repetitions: Passes of each kind; the median counts.
        skip: Tells which layers to leave inside though they can be blinded.
    """

    handoff: Callable[[int], float]
    clear: Callable[[Block, float], float] = same_speed
    repetitions: int = 5
    skip: Callable[[Layer], bool] | None = None


def measure(
    network: IntegerNetwork,
    blocks: list[Block],
    engine: Engine,
    image: torch.Tensor,
    setting: Setting,
) -> Costs:
    """The costs of all blocks for one image.

    Args:
        network: The network, with an engine for all layers that `setting` leaves to be blinded.
        blocks: Its blocks.
        engine: Runs the blinded layers; what its outside takes counts into their blocks.
        image: (1, ...), any values that the network takes.
        setting: The rest.
    """
    names = [n for b in blocks for n in network.blindable(b, setting.skip)]
    inside: list[dict[str, float]] = []
    blinded: list[dict[str, float]] = []
    outside: list[dict[str, float]] = []
    for i in range(setting.repetitions + 1):
        plain: dict[str, float] = {}
        masked: dict[str, float] = {}
        network.run(image, (), _never, plain)
        engine.bank.fill()
        before = _outside(engine, names)
        network.run(image, names, engine.request().compute, masked)
        after = _outside(engine, names)
        if i:  # The first pass warms up.
            inside.append(plain)
            blinded.append(masked)
            outside.append({n: after[n] - before[n] for n in names})
    factors = {n: _factors(network.layers[n].layer, setting.repetitions) for n in names}
    order = [n.name for n in network.module.graph.nodes]
    costs = []
    for block in blocks:
        nodes = order[block.first : block.last + 1]
        enclave, online = (_sum(passes, nodes) for passes in (inside, blinded))
        own = [n for n in nodes if n in factors]
        inner = online - _sum(outside, own)
        for name in own:
            layer = network.layers[name].layer
            sizes = (torch.Size(s).numel() for s in (layer.shape, layer.output_shape))
            online += sum(setting.handoff(4 * size) for size in sizes)
        costs.append(
            BlockCost(
                enclave=enclave,
                blinded=online if own else None,
                clear=setting.clear(block, enclave),
                factors=sum(factors[n] for n in own),
                inside=max(0.0, inner) if own else 0.0,
            )
        )
    answer = network.run(image, (), _never)
    entering = [image.nbytes, *(_bytes(b) for b in blocks[1:]), answer.nbytes]
    return Costs(tuple(costs), tuple(setting.handoff(n) for n in entering))


def _never(name: str, values: torch.Tensor) -> torch.Tensor:
    raise AssertionError(f"layer {name!r} runs inside")


def _outside(engine: Engine, names: list[str]) -> dict[str, float]:
    return {n: engine.counts.seconds[n]["outside"] for n in names}


def _sum(passes: list[dict[str, float]], nodes: list[str]) -> float:
    return 1e3 * median(sum(spent[n] for n in nodes) for spent in passes)


def _bytes(block: Block) -> int:
    """What enters a block for one image."""
    assert block.cut is not None
    return sum(t.bytes // max(1, t.shape[0]) for t in block.cut.boundary)


def _factors(layer: Layer, repetitions: int) -> float:
    times = []
    for _ in range(repetitions):
        begun = time.perf_counter()
        Pad(layer)
        times.append(1e3 * (time.perf_counter() - begun))
    return median(times)
