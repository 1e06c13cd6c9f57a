"""White-box least squares: the pseudo-inverse of a head that is linear, or nearly so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from ..errors import AttackError
from .base import Attacker, Context, as_features, as_images, checked, fit_member
from .inversion import Head, resized
from .least_squares import Prior, Problem, departure, row_norms
from .linear import Linear
from .pairs import Pairs
from .scoring import ssim_of

_AFFINE = 0.02  # a departure below is rounding: features are stored in half precision
_PRIOR_IMAGES = 64
_STEP_GAIN = 1e-3  # SSIM that twice as many steps must bring
_FIRST = 4  # steps after which half of `gain` must be there


@dataclass(frozen=True)
class _Choice:
    """Which problem is solved, and how far."""

    problem: Problem
    steps: int


@dataclass(repr=False)
class Newton(Attacker):
    """Gauss-Newton steps on the public head, from the linear attacker's picture.

    A dense layer, a shuffle, a rotation or a transform mixes all pixels: no attacker that learns
    from a few hundred images can undo it, but whoever knows the weights can, in closed form. The
    pseudo-inverse is applied by conjugate gradients, which need only the head and its derivatives;
    a head that is not affine is linearised anew every few iterations. Both a prior that knows
    nothing (all frequencies alike, channels weighted by how strongly they answer) and that of the
    training images (their colours and spectrum) are tried, and the number of iterations, which is
    the regularisation, is chosen on validation images; where none helps there, the linear
    attacker's picture is kept as it is.

    Args:
        steps: Conjugate-gradient iterations on an affine head, at most.
        bent: The same on a head that is not affine, which costs a pass or two of it each.
        restart: Iterations on one linearisation of such a head.
        reach: Heads further from affine (see `departure`) are left to the other attackers, and the
            linear attacker's picture is kept.
        batch: Images solved for together.
        gain: SSIM on validation images by which the linear attacker's picture must be beaten, or it
            is kept; every iteration costs some passes of the head for every image.
        tuning_images: Validation images that prior and number of iterations are chosen on.
        probes: Noise pictures for each of them that channels are weighted by.
        linear: Settings of the linear attacker underneath.
    """

    name: ClassVar[str] = "newton"
    rank: ClassVar[int] = 1
    white_box: ClassVar[bool] = True

    steps: int = 64
    bent: int = 16
    restart: int = 4
    reach: float = 0.75
    gain: float = 0.005
    batch: int = 8
    tuning_images: int = 8
    probes: int = 4
    linear: Linear = field(default_factory=Linear)
    affine: float = field(default=float("nan"), init=False)
    choice: _Choice | None = field(default=None, init=False)
    _head: Head | None = field(default=None, init=False)
    _side: int = field(default=0, init=False)
    _context: Context = field(default_factory=Context, init=False)

    def fit(self, pairs: Pairs, context: Context) -> None:
        """Fit the linear attacker, then choose prior and number of steps on validation images."""
        if context.head is None:
            raise AttackError(f"{self.name} needs the public head, which was not given")
        pictures = pairs.images
        self._head, self._context = context.head, context
        self._side = context.input_size or pairs.resolution
        linear = fit_member(self.linear, pairs, context)
        assert isinstance(linear, Linear)
        self.linear = linear
        known = as_images(pictures.take(range(min(_PRIOR_IMAGES, len(pictures)))), context.device)
        few = min(self.tuning_images, len(pairs.held_out_images))
        self._choose(pairs.held_out.take(range(few)), pairs.held_out_images[:few], known)
        context.report(1.0)

    @property
    def beyond(self) -> bool:
        """Whether the head was too far from affine to be inverted."""
        return self.affine > self.reach

    def _choose(self, maps: np.ndarray, truth: np.ndarray, known: torch.Tensor) -> None:
        """Take what rebuilds validation images best; the start, where nothing does better."""
        assert self._head is not None
        wanted = as_features(maps, self._context.device)
        self.choice = None
        start = self._start(maps)
        before = best = self._score(start, truth)
        with torch.no_grad():
            apart = resized(known[: len(start)], self._side)
            self.affine = departure(self._head, apart, apart.roll(1, 0))
        if not np.isfinite(self.affine):
            raise AttackError(f"{self!r}: the head gave values that are not finite")
        if self.beyond:
            return
        with torch.no_grad():
            norms = row_norms(self._head, start, self.probes, self._context.seed)
        affine = self.affine < _AFFINE
        restart, steps = (0, self.steps) if affine else (self.restart, self.bent)
        flat = torch.where(norms > 1e-6 * norms.max(), 1 / norms.clamp_min(1e-20), 0.0)
        for prior, weights in ((Prior(), flat), (Prior.of(known), torch.ones_like(flat))):
            problem = Problem(self._head, prior, weights, restart)
            marks = [before]

            def look(
                step: int,
                pictures: torch.Tensor,
                problem: Problem = problem,
                marks: list[float] = marks,
            ) -> bool:
                nonlocal best
                self._context.image_steps += len(pictures)
                if step & (step - 1) and step != steps:
                    return True
                value = self._score(pictures, truth)
                if value > best + _STEP_GAIN:
                    best, self.choice = value, _Choice(problem, step)
                marks.append(value)
                if step == _FIRST and max(marks) < before + self.gain / 2:
                    return False
                # Twice as many steps brought nothing, twice over: more of them fit the noise.
                return len(marks) < 4 or max(marks[-2:]) > max(marks[:-2])

            problem.solve(wanted, start, steps, look)
        if best < before + self.gain:
            self.choice = None

    def _start(self, maps: np.ndarray) -> torch.Tensor:
        return resized(self.linear.reconstruct(maps).to(self._context.device), self._side)

    def _score(self, pictures: torch.Tensor, truth: np.ndarray) -> float:
        if not bool(torch.isfinite(pictures).all()):
            return -1.0
        ours = resized(pictures.clamp(0, 1), truth.shape[-1])
        return float(ssim_of(lambda _: ours, truth, truth, batch=len(truth)).mean())

    def reconstruct(self, features: np.ndarray) -> torch.Tensor:
        """Solve for the pictures, or take the linear attacker's."""
        if self.choice is None:
            return self.linear.reconstruct(features)
        side = self.linear.side
        out = []
        for i in range(0, len(features), self.batch):
            part = features[i : i + self.batch]
            maps = as_features(part, self._context.device)
            found = self.choice.problem.solve(maps, self._start(part), self.choice.steps)
            self._context.image_steps += len(part) * self.choice.steps
            out.append(checked(resized(found.clamp(0, 1), side), self).cpu())
        return torch.cat(out)
