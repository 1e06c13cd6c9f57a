"""From a decoded image to the tensor a model wants, in two steps with the attack's view between.

``to_unit`` resizes and crops to the model's input size and gives RGB in [0, 1]: that is the picture
attackers see and rebuild. ``normalise`` is the affine step after it. `pixels` says how a file
becomes pixels.

Memory and time are bounded by the decoded picture and the crop. Scaling the short side of a thin
picture up makes its long side enormous (1x8000 pixels become 256x2,048,000), and the crop keeps a
sliver of it. Where the resized picture has more pixels than the decoded one *and* an aspect ratio
beyond `_ASPECT`, only the rows and columns that the crop keeps are computed, with the same weights
in double precision: where two levels tie, one may be taken for the other. Below that, pixels are
bit for bit torchvision's, of one channel at a time: a float copy of all three would be the peak.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .errors import PictureError
from .pixels import rgb

_ASPECT = 64
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images.

    Attributes:
        input_size: Height and width of the model's input, in pixels.
        resize: Length of the image's short side before the centre crop, in pixels.
        mean, std: Per channel, of values in [0, 1].
        interpolation: ``"bilinear"`` or ``"bicubic"`` (with antialiasing).
        source: Where these settings come from.
    """

    input_size: int
    resize: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    source: str = "defaults: 224 pixels, ImageNet mean and std"

    def to_unit(self, image: Image.Image) -> np.ndarray:
        """Decode (see `pixels.rgb`) and `fit`; return uint8 RGB, (3, input_size, input_size)."""
        return self.fit(rgb(image))

    def fit(self, pixels: np.ndarray) -> np.ndarray:
        """Resize and crop uint8 RGB (H, W, 3); return uint8 of shape (3, input_size, input_size).

        The same pixels as torchvision's ``Resize`` (antialiased) and ``CenterCrop``, in plain
        torch: this also runs in the enclave, where every further library is code to trust.

        Raises:
            PictureError: ``too-large``: there is not the memory.
        """
        try:
            return self._fitted(pixels)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "alloc" not in str(error):
                raise
            raise PictureError("too-large", "does not fit into memory") from None

    def _fitted(self, pixels: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        target = self._target(*tensor.shape[-2:])
        rows, columns = (_kept(n, self.input_size) for n in target)
        if min(tensor.shape[-2:]) == self.resize:
            tensor = tensor[:, rows, columns]
        elif self._is_thin(*tensor.shape[-2:]):
            left, across = _weights(tensor.shape[-1], target[1], columns, self.interpolation)
            top, down = _weights(tensor.shape[-2], target[0], rows, self.interpolation)
            tensor = _to_bytes(down @ (tensor[:, top, left].double() @ across.T))
        else:
            scaled = (_scaled(c, target, self.interpolation)[rows, columns] for c in tensor)
            tensor = torch.stack([_to_bytes(channel) for channel in scaled])
        y, x = (self.input_size - n for n in tensor.shape[-2:])
        if y or x:
            pad = [x // 2, (x + 1) // 2, y // 2, (y + 1) // 2]
            tensor = torch.nn.functional.pad(tensor, pad)
        return np.asarray(tensor.numpy())

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """Height and width once the short side has `resize` pixels."""
        long = int(self.resize * max(height, width) / min(height, width))
        return (self.resize, long) if height <= width else (long, self.resize)

    def _is_thin(self, height: int, width: int) -> bool:
        """Whether the resized picture would be out of all proportion to the decoded one."""
        resized = math.prod(self._target(height, width))
        return resized > max(height * width, _ASPECT * self.resize**2)

    def normalise(self, unit: torch.Tensor) -> torch.Tensor:
        """Map RGB in [0, 1], shape (N, 3, H, W), to the model's input."""
        mean = torch.tensor(self.mean, device=unit.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=unit.device).view(1, 3, 1, 1)
        return (unit - mean) / std

    def as_dict(self) -> dict[str, Any]:
        """All settings as plain values."""
        return asdict(self)

    def values(self) -> dict[str, Any]:
        """The settings without where they come from."""
        return {name: value for name, value in asdict(self).items() if name != "source"}


def _kept(length: int, side: int) -> slice:
    """What the centre crop keeps of `length` rows or columns."""
    start = max(0, round((length - side) / 2))
    return slice(start, min(length, start + side))


def _scaled(channel: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    return torch.nn.functional.interpolate(
        channel[None, None].float(), size=size, mode=mode, align_corners=False, antialias=True
    )[0, 0]


def _to_bytes(levels: torch.Tensor) -> torch.Tensor:
    return levels.clamp(0, 255).round().to(torch.uint8)


def _weights(length: int, target: int, kept: slice, mode: str) -> tuple[slice, torch.Tensor]:
    """Which of `length` rows the kept ones of `target` are made of, and how.

    Returns the span of rows, and float64 weights of shape (kept, rows in the span).
    """
    reach, kernel = (1.0, _triangle) if mode == "bilinear" else (2.0, _cubic)
    scale = length / target
    wide = max(scale, 1.0)
    centre = scale * (torch.arange(kept.start, kept.stop, dtype=torch.float64) + 0.5)
    first = max(0, math.floor(float(centre[0]) - reach * wide))
    last = min(length, math.ceil(float(centre[-1]) + reach * wide))
    rows = torch.arange(first, last, dtype=torch.float64) + 0.5
    away = (rows - centre[:, None]).abs() / wide
    weights = torch.where(away < reach, kernel(away), 0.0)
    return slice(first, last), weights / weights.sum(1, keepdim=True)


def _triangle(away: torch.Tensor) -> torch.Tensor:
    return 1 - away


def _cubic(away: torch.Tensor) -> torch.Tensor:
    near = (1.5 * away - 2.5) * away**2 + 1
    far = ((-0.5 * away + 2.5) * away - 4) * away + 2
    return torch.where(away < 1, near, far)


def from_torchvision(preset: Any) -> Preprocessing:
    """Read torchvision's ``ImageClassification`` preset."""
    return Preprocessing(
        input_size=int(preset.crop_size[0]),
        resize=int(preset.resize_size[0]),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=str(preset.interpolation.value),
        source="torchvision weights metadata",
    )
