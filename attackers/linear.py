"""Closed-form ridge regression from a neighbourhood of feature cells to the image patch above."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from ..errors import AttackError
from .base import Attacker, Context, as_features, as_images, checked
from .fast_ssim import fast_ssim
from .pairs import Pairs
from .scoring import ssim_of


@dataclass(repr=False)
class Linear(Attacker):
    """Each image patch is a linear function of the k x k feature cells around it.

    Normal equations are streamed over the training images in bounded memory, solved for several
    ridge weights, and the one with the best validation SSIM is kept. Where there are fewer cells
    than terms (1x1 maps) the dual form is solved instead.

    Args:
        max_terms: Upper bound on k*k*C; k is the largest odd number within it, at most `max_k`.
        max_k: Largest neighbourhood.
        max_cells: At most so many feature cells are used, drawn at random from all images.
        max_work: Upper bound on cells * terms^2, the cost of the normal equations.
        detail: Smallest side, in pixels, of the picture predicted from a map; small maps give
            patches of `detail` / h pixels, which are scaled up.
        ridges: Ridge weights tried, relative to the mean squared feature.
    """

    name: ClassVar[str] = "linear"
    rank: ClassVar[int] = 1

    max_terms: int = 1700
    max_k: int = 5
    max_cells: int = 100_000
    max_work: float = 1.2e11
    detail: int = 56
    ridges: tuple[float, ...] = (1e-5, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    _weight: torch.Tensor | None = field(default=None, init=False)
    _bias: torch.Tensor | None = field(default=None, init=False)
    _resolution: int = field(default=0, init=False)
    _k: int = field(default=1, init=False)
    _patch: tuple[int, int] = field(default=(1, 1), init=False)
    ridge: float = field(default=math.nan, init=False)

    def fit(self, pairs: Pairs, context: Context) -> None:
        """Solve for the patch regression."""
        rows, targets = pairs.features, pairs.images
        self._resolution = targets.shape[-1]
        channels, h, w = rows.shape[1:]
        h, w = min(h, self._resolution), min(w, self._resolution)
        self._k = self._neighbourhood(channels, h, w)
        self._patch = (self._patch_side(h), self._patch_side(w))
        rng = np.random.default_rng(context.seed)
        most = min(self.max_cells, int(self.max_work / (channels * self._k**2) ** 2))
        cells = min(h * w, max(1, math.ceil(most / len(rows))))
        dual = len(rows) * cells < channels * self._k**2
        gathered = _Sums() if not dual else _Stack()
        batch = max(1, min(64, 2**26 // max(1, channels * h * w)))
        for start in range(0, len(rows), batch):
            index = range(start, min(start + batch, len(rows)))
            gathered.add(*self._cells(rows.take(index), targets.take(index), cells, rng))
            context.image_steps += len(index)
            context.report(0.8 * index.stop / len(rows))
        self._choose_ridge(gathered, pairs)
        context.report(1.0)

    def _neighbourhood(self, channels: int, h: int, w: int) -> int:
        k = self.max_k
        while k > 1 and (k * k * channels > self.max_terms or k > 2 * min(h, w) - 1):
            k -= 2
        return k

    def _patch_side(self, cells: int) -> int:
        wanted = min(self._resolution, max(cells, self.detail))
        if cells * 16 >= self._resolution:
            wanted = self._resolution
        return max(1, math.ceil(wanted / cells))

    def _maps(self, features: np.ndarray) -> torch.Tensor:
        """Feature maps no finer than the image: finer ones are averaged down."""
        maps = as_features(features)
        size = (min(maps.shape[2], self._resolution), min(maps.shape[3], self._resolution))
        return maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size)

    def _cells(
        self, features: np.ndarray, images: np.ndarray, cells: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Terms (n, k*k*C) and patches (n, 3*p*p) of randomly drawn cells."""
        maps = self._maps(features)
        n, channels, h, w = maps.shape
        ph, pw = self._patch
        pictures = F.interpolate(
            as_images(images), (h * ph, w * pw), mode="bilinear", antialias=True
        )
        margin = self._k // 2
        padded = F.pad(maps, (margin,) * 4)
        # The same number of cells of every image, other ones in each.
        drawn = np.stack([rng.permutation(h * w)[:cells] for _ in range(n)])
        ys, xs = torch.from_numpy(drawn // w), torch.from_numpy(drawn % w)
        which = torch.arange(n)[:, None]
        terms = torch.stack(
            [padded[which, :, ys + dy, xs + dx] for dy in range(self._k) for dx in range(self._k)],
            -1,
        )
        patches = pictures.view(n, 3, h, ph, w, pw).permute(0, 2, 4, 1, 3, 5)
        return (
            terms.reshape(n * cells, channels * self._k**2),
            patches[which, ys, xs].reshape(n * cells, 3 * ph * pw),
        )

    def _choose_ridge(self, gathered: _Sums | _Stack, pairs: Pairs) -> None:
        best = -math.inf
        chosen: tuple[torch.Tensor, torch.Tensor] | None = None
        for ridge in self.ridges:
            solved = gathered.solve(ridge)
            if solved is None:
                continue
            self._weight, self._bias = solved
            scores = ssim_of(
                self.reconstruct, pairs.held_out, pairs.held_out_images, measure=fast_ssim
            )
            value = float(scores.mean())
            if value > best:
                best, chosen, self.ridge = value, solved, ridge
        if chosen is None:
            raise AttackError(f"{self!r} could not solve its normal equations at any ridge weight")
        self._weight, self._bias = chosen

    @property
    def side(self) -> int:
        """Side of the rebuilt images, pixels."""
        return self._resolution

    def reconstruct(self, features: np.ndarray) -> torch.Tensor:
        """Apply the regression as one convolution and put the patches side by side."""
        return checked(self.predict(features), self)

    def predict(self, features: np.ndarray) -> torch.Tensor:
        """The reconstruction before clamping, (N, 3, R, R)."""
        assert self._weight is not None, "fit first"
        maps = self._maps(features)
        n, channels, h, w = maps.shape
        ph, pw = self._patch
        kernel = self._weight.T.reshape(-1, channels, self._k, self._k)
        flat = F.conv2d(maps, kernel, self._bias, padding=self._k // 2)
        grid = flat.view(n, 3, ph, pw, h, w).permute(0, 1, 4, 2, 5, 3)
        picture = grid.reshape(n, 3, h * ph, w * pw)
        size = (self._resolution, self._resolution)
        if picture.shape[2:] != size:
            picture = F.interpolate(
                picture, size, mode="bilinear", antialias=True, align_corners=False
            )
        return picture


class _Sums:
    """Streamed normal equations of centred least squares."""

    def __init__(self) -> None:
        self.count = 0
        self.xx: torch.Tensor | None = None

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        if self.xx is None:
            terms, outputs = x.shape[1], y.shape[1]
            self.xx = torch.zeros(terms, terms, dtype=torch.float64)
            self.xy = torch.zeros(terms, outputs, dtype=torch.float64)
            self.x = torch.zeros(terms, dtype=torch.float64)
            self.y = torch.zeros(outputs, dtype=torch.float64)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.x += x.double().sum(0)
        self.y += y.double().sum(0)
        self.count += len(x)

    def solve(self, ridge: float) -> tuple[torch.Tensor, torch.Tensor] | None:
        assert self.xx is not None
        mx, my = self.x / self.count, self.y / self.count
        xx = self.xx / self.count - torch.outer(mx, mx)
        xy = self.xy / self.count - torch.outer(mx, my)
        scale = max(float(xx.diagonal().mean()), 1e-12)
        xx = xx + ridge * scale * torch.eye(len(mx), dtype=torch.float64)
        factor, failed = torch.linalg.cholesky_ex(xx)
        if int(failed):
            return None
        weight = torch.cholesky_solve(xy, factor)
        return weight.float(), (my - mx @ weight).float()


_OUTPUTS = 512  # columns of a solution made at a time


class _Stack:
    """The dual form, for fewer samples than terms: all samples are kept."""

    def __init__(self) -> None:
        self.xs: list[torch.Tensor] = []
        self.ys: list[torch.Tensor] = []
        self._centred: tuple[torch.Tensor, ...] | None = None

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.xs.append(x)
        self.ys.append(y)

    def _once(self) -> tuple[torch.Tensor, ...]:
        """Centred terms and outputs, their means, and the kernel: the same for every ridge."""
        if self._centred is None:
            x, y = torch.cat(self.xs).double(), torch.cat(self.ys).double()
            self.xs, self.ys = [], []
            mx, my = x.mean(0), y.mean(0)
            x -= mx
            y -= my
            self._centred = (x, y, mx, my, x @ x.T)
        return self._centred

    def solve(self, ridge: float) -> tuple[torch.Tensor, torch.Tensor] | None:
        x, y, mx, my, kernel = self._once()
        scale = max(float(kernel.diagonal().mean()), 1e-12)
        kernel = kernel + ridge * scale * torch.eye(len(x), dtype=torch.float64)
        factor, failed = torch.linalg.cholesky_ex(kernel)
        if int(failed):
            return None
        dual = torch.cholesky_solve(y, factor)
        # All terms by all outputs can be gigabytes in double precision: a part at a time.
        weight = torch.empty(x.shape[1], y.shape[1])
        for part in torch.arange(y.shape[1]).split(_OUTPUTS):
            weight[:, part] = (x.T @ dual[:, part]).float()
        return weight, (my - (x @ mx) @ dual).float()
