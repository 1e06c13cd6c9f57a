"""Is an unmasked answer the layer's? Secret sums modulo a prime say so (Freivalds' check).

A secret s over all outputs is drawn inside, and Wᵀs made ahead; then s·y = (Wᵀs)·x for the true y,
at one multiplication a value. s is a secret a over channels times a secret b over positions, which
is quicker to apply; a wrong y then passes one repetition with probability at most 2 in 2^31 - 1 (it
is a root of a polynomial of degree two), and both with at most 2^-60.

That needs y and x as integers and not as residues. Over the ring of the masks, a change by 2^31
would pass every second time. And an answer may differ from the truth by the prime itself, which is
0 modulo it, however secret s is; so a value beyond what the layer can reach is refused first, and
what is left differs by less than the prime (`Layer.unprovable` asks for that).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from . import field
from .layers import Layer

REPETITIONS = 2


class Check:
    """The check of one layer, with secrets of its own that never leave this object.

    Args:
        layer: The layer.
        repetitions: A wrong answer passes with probability 2^-30 to the power of this at most.

    Raises:
        BlindingError: The layer has sums that could wrap.
    """

    def __init__(self, layer: Layer, repetitions: int = REPETITIONS) -> None:
        self.layer = layer.proved()
        channels = layer.weight.shape[0]
        positions = torch.Size(layer.output_shape).numel() // channels
        self._channels = field.uniform(repetitions * channels).reshape(repetitions, channels)
        self._positions = [field.uniform(positions) for _ in range(repetitions)]
        made = []
        for a, b in zip(self._channels, self._positions, strict=True):
            outer = field.reduced(a.to(torch.int64)[:, None] * b)
            # A linear layer has its channels last.
            secret = (outer if layer.window else outer.T).reshape(-1).to(torch.int32)
            made.append(transposed(layer, secret))
        self._made = torch.stack(made)

    @property
    def bytes(self) -> int:
        """Memory that the secrets and what is made of them take."""
        return sum(t.nbytes for t in (self._channels, *self._positions, self._made))

    def passes(self, values: torch.Tensor, answer: torch.Tensor) -> bool:
        """Whether `answer` is the layer's output for `values`, for every image.

        Args:
            values: (batch, \\*layer.shape), int32 of magnitude up to the layer's limit.
            answer: (batch, \\*layer.output_shape), int32, unmasked.
        """
        low, high = torch.aminmax(answer)
        if int(low) < -self.layer.bound or int(high) > self.layer.bound:
            return False
        return torch.equal(self._sums(answer), field.dots(self._made, values.flatten(1)))

    def _sums(self, answer: torch.Tensor) -> torch.Tensor:
        """s·y, (repetitions, batch)."""
        if self.layer.window:
            y = answer.flatten(2)
        else:
            y = answer.reshape(len(answer), -1, answer.shape[-1]).transpose(1, 2)
        over = field.combined(self._channels, y, self.layer.bound)
        sums = [field.reduced(over[:, i] * b).sum(1) for i, b in enumerate(self._positions)]
        return field.reduced(torch.stack(sums))


def transposed(layer: Layer, secret: torch.Tensor) -> torch.Tensor:
    """Wᵀ times `secret` (int32 residues, one an output), as int32 residues, one an input."""
    weight = layer.weight
    if layer.window is None:
        return _product(secret.reshape(-1, weight.shape[0]), weight).flatten().to(torch.int32)
    window, (_, height, width) = layer.window, layer.output_shape
    left, right, above, below = window.padding
    channels, high, wide = layer.shape
    total = torch.zeros(channels, high + above + below, wide + left + right, dtype=torch.int64)
    secrets = secret.reshape(window.groups, -1, height * width).transpose(1, 2)
    weights = weight.unflatten(0, (window.groups, -1))
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            parts = [_product(s, w[:, :, i, j]) for s, w in zip(secrets, weights, strict=True)]
            found = torch.cat(parts, 1).T.unflatten(1, (height, width))
            down, across = i * window.dilation[0], j * window.dilation[1]
            total[
                :,
                down : down + window.stride[0] * (height - 1) + 1 : window.stride[0],
                across : across + window.stride[1] * (width - 1) + 1 : window.stride[1],
            ] += found
    total = field.reduced(F.pad(total, (-left, -right, -above, -below)))
    return total.flatten().to(torch.int32)


def _product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """rows (n, k) residues times weight (k, m) int8, modulo the prime: 2^31 * 2^7 * 2^15 = 2^53."""
    total = torch.zeros(rows.shape[0], weight.shape[1], dtype=torch.int64)
    for start in range(0, rows.shape[1], 1 << 15):
        part = rows[:, start : start + (1 << 15)].to(torch.float64)
        found = part @ weight[start : start + (1 << 15)].to(torch.float64)
        total = field.reduced(total + found.to(torch.int64))
    return total
