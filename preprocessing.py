"""From a decoded image to the tensor a model wants, in two steps with the attack's view between.

``to_unit`` resizes and crops to the model's input size and gives RGB in [0, 1]: that is the picture
attackers see and rebuild. ``normalise`` is the affine step after it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

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
        """Decode, resize and crop; return uint8 RGB of shape (3, input_size, input_size).

        The same pixels as torchvision's ``Resize`` (antialiased) and ``CenterCrop``, in plain
        torch: this also runs in the enclave, where every further library is code to trust.
        """
        pixels = np.array(image.convert("RGB")).transpose(2, 0, 1)
        tensor = torch.from_numpy(np.ascontiguousarray(pixels))
        if min(tensor.shape[-2:]) != self.resize:
            tensor = self._resized(tensor)
        side = self.input_size
        short = [max(0, side - n) for n in tensor.shape[-2:]]
        if any(short):
            (y, x) = short
            pad = [x // 2, (x + 1) // 2, y // 2, (y + 1) // 2]
            tensor = torch.nn.functional.pad(tensor, pad)
        top, left = (round((n - side) / 2) for n in tensor.shape[-2:])
        return np.asarray(tensor[:, top : top + side, left : left + side].numpy())

    def _resized(self, tensor: torch.Tensor) -> torch.Tensor:
        """Bring the short side to `resize` pixels."""
        height, width = tensor.shape[-2:]
        long = int(self.resize * max(height, width) / min(height, width))
        size = [self.resize, long] if height <= width else [long, self.resize]
        scaled = torch.nn.functional.interpolate(
            tensor[None].float(),
            size=size,
            mode=self.interpolation,
            align_corners=False,
            antialias=True,
        )
        return scaled.clamp(0, 255).round().to(torch.uint8)[0]

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
