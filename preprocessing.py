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

from ._torchvision import InterpolationMode, transforms

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
        """Decode, resize and crop; return uint8 RGB of shape (3, input_size, input_size)."""
        tensor = transforms.pil_to_tensor(image.convert("RGB"))
        mode = InterpolationMode(self.interpolation)
        if min(tensor.shape[-2:]) != self.resize:
            tensor = transforms.resize(tensor, [self.resize], mode, antialias=True)
        cropped = transforms.center_crop(tensor, [self.input_size, self.input_size])
        return np.asarray(cropped.numpy())

    def normalise(self, unit: torch.Tensor) -> torch.Tensor:
        """Map RGB in [0, 1], shape (N, 3, H, W), to the model's input."""
        mean = torch.tensor(self.mean, device=unit.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=unit.device).view(1, 3, 1, 1)
        return (unit - mean) / std

    def as_dict(self) -> dict[str, Any]:
        """All settings as plain values."""
        return asdict(self)


def from_torchvision(preset: Any) -> Preprocessing:
    """Read torchvision's ``ImageClassification`` preset."""
    return Preprocessing(
        input_size=int(preset.crop_size[0]),
        resize=int(preset.resize_size[0]),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=InterpolationMode(preset.interpolation).value,
        source="torchvision weights metadata",
    )
