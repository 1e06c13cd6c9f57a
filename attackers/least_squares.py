"""Gauss-Newton on the public head: conjugate gradients for the picture whose features were seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .inversion import Head

_STRIDE = 0.05  # largest change of a pixel over which a derivative is taken


@dataclass(frozen=True)
class Prior:
    """What pictures look like, as the symmetric root of a covariance: colours times spectrum.

    Attributes:
        colours: Symmetric root of the covariance of the three colours, (3, 3); None leaves pictures
            as they are, all frequencies and colours alike.
        fall: Exponent of the amplitude spectrum: amplitudes go with frequency ** -fall.
    """

    colours: torch.Tensor | None = None
    fall: float = 0.0

    @classmethod
    def of(cls, images: torch.Tensor) -> Prior:
        """Measured on images (N, 3, R, R) in [0, 1]."""
        centred = images - images.mean((0, 2, 3), keepdim=True)
        flat = centred.transpose(0, 1).reshape(3, -1).double()
        values, vectors = torch.linalg.eigh(flat @ flat.T / flat.shape[1])
        root = vectors @ values.clamp_min(1e-8).sqrt().diag() @ vectors.T
        grey = centred.mean(1)
        side = grey.shape[-1]
        basis = _cosines(side, images.device)
        power = (basis @ grey @ basis.T).square().mean(0)
        frequency = _frequencies(side, images.device)
        inside = (frequency >= 1) & (frequency < side)
        x, y = frequency[inside].log(), power[inside].clamp_min(1e-12).log()
        x = x - x.mean()
        slope = float((x * (y - y.mean())).sum() / (x * x).sum().clamp_min(1e-12))
        return cls((root / root.diagonal().mean()).float(), min(2.0, max(0.0, -slope / 2)))

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """The root applied to pictures (N, 3, S, S); it is its own transpose."""
        if self.colours is None:
            return pictures
        basis = _cosines(pictures.shape[-1], pictures.device)
        amplitude = _frequencies(pictures.shape[-1], pictures.device).clamp_min(0.5) ** -self.fall
        shaped = basis.T @ (amplitude * (basis @ pictures @ basis.T)) @ basis
        return torch.einsum("ij,njhw->nihw", self.colours.to(pictures.device), shaped)


def _cosines(side: int, device: torch.device) -> torch.Tensor:
    """The orthonormal discrete cosine transform, (side, side)."""
    k = torch.arange(side, dtype=torch.float64)
    basis = torch.cos(torch.pi / side * k[:, None] * (k[None] + 0.5)) * (2 / side) ** 0.5
    basis[0] /= 2**0.5
    found: torch.Tensor = basis.float().to(device)
    return found


def _frequencies(side: int, device: torch.device) -> torch.Tensor:
    k = torch.arange(side, dtype=torch.float32)
    found: torch.Tensor = (k[:, None] ** 2 + k[None] ** 2).sqrt().to(device)
    return found


@dataclass(frozen=True)
class Problem:
    """What is solved, in the sense of weighted least squares.

    Attributes:
        head: Images (N, 3, S, S) to normalised maps (N, C, h, w).
        prior: Shape of the changes that are looked for.
        weights: Of the channels, (1, C, 1, 1).
        restart: Iterations after which the head is linearised anew; 0 never.
    """

    head: Head
    prior: Prior
    weights: torch.Tensor
    restart: int = 0

    def solve(
        self,
        wanted: torch.Tensor,
        start: torch.Tensor,
        steps: int,
        on_step: Callable[[int, torch.Tensor], bool] = lambda step, pictures: True,
    ) -> torch.Tensor:
        """Least squares from `start` (N, 3, S, S), image by image, all of a batch at once.

        Few iterations move only along what the features say most about, which is what keeps the
        noise out: the number of steps is the regularisation.

        Args:
            wanted: The maps that were seen, (N, C, h, w).
            start: First guesses.
            steps: Conjugate-gradient iterations.
            on_step: Called after each with its number and the pictures; False ends.
        """
        done, pictures = 0, start
        while done < steps:
            share = min(self.restart or steps, steps - done)
            pictures, more = self._linear(wanted, pictures, share, done, on_step)
            done += share
            if not more:
                break
            pictures = pictures.clamp(0, 1)
        return pictures

    def _linear(
        self,
        wanted: torch.Tensor,
        at: torch.Tensor,
        steps: int,
        done: int,
        on_step: Callable[[int, torch.Tensor], bool],
    ) -> tuple[torch.Tensor, bool]:
        """Some iterations on the head linearised where the pictures are."""
        with torch.enable_grad():
            point = at.detach().clone().requires_grad_(True)
            maps = self.head(point)
        there = maps.detach()

        def transposed(residual: torch.Tensor) -> torch.Tensor:
            (slope,) = torch.autograd.grad(
                maps, point, self.weights * residual, retain_graph=True, allow_unused=True
            )
            return self.prior(torch.zeros_like(at) if slope is None else slope)

        pictures = at.detach().clone()
        if not maps.requires_grad:
            return pictures, on_step(done + steps, pictures)
        with torch.no_grad():
            residual = self.weights * (wanted - there)
            gradient = transposed(residual)
            direction, size = gradient, _squares(gradient)
            for step in range(steps):
                change = self.prior(direction)
                forward = self.weights * self.slope(at, there, change)
                length = (size / _squares(forward).clamp_min(1e-20))[:, None, None, None]
                pictures = pictures + length * change
                residual = residual - length * forward
                if not on_step(done + step + 1, pictures):
                    return pictures, False
                if step + 1 == steps:
                    break
                gradient = transposed(residual)
                before, size = size, _squares(gradient)
                share = (size / before.clamp_min(1e-20))[:, None, None, None]
                direction = gradient + share * direction
        return pictures, True

    def slope(self, at: torch.Tensor, there: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """The derivative of the head at `at`, where it gives `there`, along `change`."""
        largest = change.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-20)
        # Along a whole unit where the head is affine, so that rounding does not show.
        stride = (_STRIDE if self.restart else 1.0) / largest
        return (self.head(at + stride * change) - there) / stride


def row_norms(head: Head, at: torch.Tensor, probes: int, seed: int) -> torch.Tensor:
    """How strongly each channel answers to white noise in the picture, (1, C, 1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    there, total = head(at), torch.zeros(1)
    for _ in range(probes):
        noise = torch.randn(at.shape, generator=generator).to(at.device)
        moved = (head(at + _STRIDE * noise) - there) / _STRIDE
        total = total.to(at.device) + moved.square().mean((0, 2, 3), keepdim=True)
    return (total / probes).sqrt()


def departure(head: Head, a: torch.Tensor, b: torch.Tensor) -> float:
    """How far the head is from affine: its miss halfway between images, in units of the way."""
    at_a, at_b = head(a), head(b)
    miss = head((a + b) / 2) - (at_a + at_b) / 2
    return float((_squares(miss).sum() / (_squares(at_a - at_b) / 4).sum().clamp_min(1e-20)).sqrt())


def _squares(batch: torch.Tensor) -> torch.Tensor:
    return batch.flatten(1).square().sum(1)
