"""A network some of whose linear layers are computed in integers, wherever that may be.

Between these layers everything is single precision, as in the model. So a network with the same
layers in integers gives the same answer bit for bit whether their sums are made by plain integer
arithmetic (the reference) or blinded: only `compute` differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..blinded.layers import Layer
from ..blinded.reference import integers
from ..errors import BlindingError, PlanError
from .blocks import Block
from .calibration import Range
from .placement import Plan
from .quantised import Quantised, quantise

Compute = Callable[[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """A traced network and those of its layers that can be computed in integers.

    Attributes:
        module: The traced network.
        layers: By the ``torch.fx`` name of the node.
        inside: The other convolution and linear modules, and why they cannot leave the enclave.
    """

    module: fx.GraphModule
    layers: Mapping[str, Quantised]
    inside: Mapping[str, str] = field(default_factory=dict)

    def blindable(self, block: Block, skip: Callable[[Layer], bool] | None = None) -> list[str]:
        """The names of a block's layers that can be blinded, `skip` telling which not to.

        A layer that can but should not (a depthwise convolution moves much and computes little)
        stays inside as it is, in single precision.
        """
        names = [n for n in block.layers if n in self.layers]
        return [n for n in names if not (skip and skip(self.layers[n].layer))]

    def run(
        self,
        images: torch.Tensor,
        names: Collection[str],
        compute: Compute,
        spent: dict[str, float] | None = None,
    ) -> torch.Tensor:
        """The network's answer with the layers `names` in integers.

        Args:
            images: What the network takes, first dimension the batch.
            names: Which layers; the others are as in the model.
            compute: Maps a layer's name and int32 inputs to its integer outputs, without bias.
            spent: Gets the seconds that each node took, by its name.

        Raises:
            PlanError: A name of no layer in integers.
        """
        unknown = sorted(set(names) - set(self.layers))
        if unknown:
            why = self.inside.get(unknown[0], "is none of the network's")
            raise PlanError(f"`names` got {unknown[0]!r}, which {why}; leave it in the enclave")
        chosen = {n: self.layers[n] for n in names}
        with torch.no_grad():
            answer: torch.Tensor = _Run(self.module, chosen, compute, spent).run(images)
        return answer

    def reference(self, images: torch.Tensor, names: Collection[str]) -> torch.Tensor:
        """The answer by plain 64-bit integer arithmetic: the truth for every way to run it."""
        return self.run(images, names, lambda n, x: integers(self.layers[n].layer, x))


class _Run(fx.Interpreter):
    def __init__(
        self,
        module: fx.GraphModule,
        layers: Mapping[str, Quantised],
        compute: Compute,
        spent: dict[str, float] | None,
    ) -> None:
        super().__init__(module)
        self._spent = spent
        self._layers = layers
        self._compute = compute
        self._folded = {q.norm for q in layers.values() if q.norm is not None}

    def run_node(self, n: fx.Node) -> Any:
        begun = time.perf_counter()
        value = self._value(n)
        if self._spent is not None:
            self._spent[n.name] = time.perf_counter() - begun
        return value

    def _value(self, n: fx.Node) -> Any:
        if n.name in self._folded:
            return self.fetch_args_kwargs_from_env(n)[0][0]
        if n.name not in self._layers:
            return super().run_node(n)
        layer = self._layers[n.name]
        (value,) = self.fetch_args_kwargs_from_env(n)[0]
        return layer.values(self._compute(n.name, layer.integers(value)))


def integer_network(module: fx.GraphModule, ranges: Mapping[str, Range]) -> IntegerNetwork:
    """Quantise every layer of a traced network that can be, and say why of the others.

    Args:
        module: The traced network (`LayerGraph.module`).
        ranges: What enters its layers (`calibrate`).
    """
    layers, inside = {}, {}
    for name, seen in ranges.items():
        try:
            layers[name] = quantise(module, name, seen)
        except BlindingError as error:
            inside[name] = str(error)
    return IntegerNetwork(module, layers, inside)


def blinded_names(
    network: IntegerNetwork,
    blocks: list[Block],
    plan: Plan,
    skip: Callable[[Layer], bool] | None = None,
) -> list[str]:
    """The layers that a plan blinds, in execution order."""
    return [n for i in plan.blocks("blinded") for n in network.blindable(blocks[i], skip)]


def depthwise(layer: Layer) -> bool:
    """Whether every output of a convolution reads one channel alone."""
    return layer.window is not None and layer.window.groups > 1 and layer.weight.shape[1] == 1
