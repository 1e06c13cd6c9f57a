"""A linear layer of a network in integers: weights of 8 bits an output channel, a static scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from ..blinded.layers import MAX_WEIGHT, Layer, Window
from ..errors import BlindingError, PlanError
from .calibration import Range, linear_module

BITS = range(8, 13)


@dataclass(frozen=True, eq=False)
class Quantised:
    """One layer with the way from values to integers and back.

    Attributes:
        layer: The layer in integers.
        step: The input value that the integer 1 stands for.
        low: 0 where only values from 0 on were seen, else minus the layer's limit.
        scale: What an output integer stands for, by output channel (float32).
        bias: By output channel (float32), added inside.
        bits: Of an input integer, its sign included.
        norm: Name of the batch norm that the weights hold, which then passes its input on.
    """

    layer: Layer
    step: float
    low: int
    scale: torch.Tensor
    bias: torch.Tensor
    bits: int
    norm: str | None

    def integers(self, values: torch.Tensor) -> torch.Tensor:
        """`values` (batch, \\*shape) in steps, rounded and clamped, as int32.

        Raises:
            PlanError: A value is not a number.
        """
        # A value that is no number makes the smallest one so, in a single pass.
        if bool(torch.aminmax(values)[0].isnan()):
            raise PlanError(f"layer {self.layer.name!r} takes in values that are not a number")
        steps = (values / self.step).round_()
        return steps.clamp_(self.low, self.layer.limit).to(torch.int32)

    def values(self, integers: torch.Tensor) -> torch.Tensor:
        """What output `integers` stand for, with the bias, as float32."""
        shape = (-1, 1, 1) if self.layer.window else (-1,)
        # Two operations that each round once, so that no shape or layout changes a bit.
        scaled = integers.to(torch.float32).mul_(self.scale.reshape(shape))
        return scaled.add_(self.bias.reshape(shape))


def quantise(module: fx.GraphModule, name: str, seen: Range) -> Quantised:
    """The layer that the node `name` of a traced network calls, in integers.

    Inputs get the most bits of `BITS` for which no sum can wrap. A batch norm that alone reads a
    convolution is folded into it.

    Args:
        module: The traced network.
        name: ``torch.fx`` name of the node.
        seen: What entered it in calibration.

    Raises:
        BlindingError: Why the layer must stay in the enclave.
    """
    node = next(n for n in module.graph.nodes if n.name == name)
    made = linear_module(module, node)
    if made is None:
        raise BlindingError("is no plain Conv2d or Linear module")
    if not seen.rows:
        raise BlindingError("takes in something whose first dimension is not the batch")
    if made.weight.dtype != torch.float32:
        raise BlindingError(f"has weights of {made.weight.dtype}, not float32")
    if isinstance(made, nn.Conv2d) and made.padding_mode != "zeros":
        raise BlindingError(f"pads by {made.padding_mode!r}, not by zeros")
    weight = made.weight.detach().to(torch.float64)
    bias = torch.zeros(len(weight), dtype=torch.float64)
    if made.bias is not None:
        bias = made.bias.detach().to(torch.float64)
    norm = _norm(module, node) if isinstance(made, nn.Conv2d) else None
    if norm is not None:
        weight, bias = _folded(module.get_submodule(str(norm.target)), weight, bias)
    if not bool(weight.isfinite().all() & bias.isfinite().all()):
        raise BlindingError("has weights that are not finite")
    largest = weight.flatten(1).abs().amax(1)
    units = torch.where(largest > 0, largest / MAX_WEIGHT, 1.0)
    whole = (weight / units.reshape(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8)
    window = _window(made) if isinstance(made, nn.Conv2d) else None
    signed = seen.low < 0
    reasons = ""
    for bits in reversed(BITS):
        limit = 2 ** (bits - signed) - 1
        layer = Layer(name, whole, seen.shape, limit, window)
        if layer.unprovable is None:
            step = (max(-seen.low, seen.high) or 1.0) / limit
            low = -limit if signed else 0
            scale, shift = (units * step).to(torch.float32), bias.to(torch.float32)
            return Quantised(layer, step, low, scale, shift, bits, norm.name if norm else None)
        reasons = layer.unprovable
    raise BlindingError(f"has {reasons}, even for inputs of {BITS[0]} bits")


def _norm(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The batch norm that reads `node` and that nothing else reads beside it."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    if user.op != "call_module":
        return None
    found = module.get_submodule(str(user.target))
    plain = type(found) is nn.BatchNorm2d and not (found._forward_hooks or found._forward_pre_hooks)
    ready = plain and not found.training and found.running_var is not None
    return user if ready else None


def _folded(
    norm: nn.Module, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = (norm.running_var.to(torch.float64) + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.detach().to(torch.float64)
    shift = 0.0 if norm.bias is None else norm.bias.detach().to(torch.float64)
    bias = (bias - norm.running_mean.to(torch.float64)) * gain + shift
    return weight * gain.reshape(-1, 1, 1, 1), bias


def _window(conv: nn.Conv2d) -> Window:
    # torch keeps what any spelling of padding comes to in the order that F.pad takes: last
    # dimension first.
    left, right, above, below = conv._reversed_padding_repeated_twice
    return Window(
        (conv.stride[0], conv.stride[1]),
        (conv.dilation[0], conv.dilation[1]),
        (left, right, above, below),
        conv.groups,
    )
