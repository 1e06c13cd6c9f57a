"""From a decoded image to the tensor a model wants, in two steps with the attack's view between.

``to_unit`` resizes and crops to the model's input size and gives RGB in [0, 1]: that is the picture
attackers see and rebuild. ``normalise`` is the affine step after it. `pixels` says how a file
becomes pixels.

Memory and time are bounded by the decoded picture and the crop. Scaling the short side of a thin
picture up makes its long side enormous (1x8000 pixels become 256x2,048,000), and the crop keeps a
sliver of it: only the rows and columns that it keeps are computed. Pixels are bit for bit
torchvision's, of one channel at a time: a float copy of all three would be the peak.
Attacks and the enclave run the same code, which needs numpy and no PyTorch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .errors import PictureError
from .pixels import rgb
from .resizing import resized

if TYPE_CHECKING:
    import torch

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
        numpy: this also runs in the enclave, where every further library is code to trust.

        Raises:
            PictureError: ``too-large``: there is not the memory.
        """
        try:
            return self._fitted(pixels)
        except MemoryError:
            raise PictureError("too-large", "does not fit into memory") from None

    def _fitted(self, pixels: np.ndarray) -> np.ndarray:
        planes = pixels.transpose(2, 0, 1)
        target = self._target(*planes.shape[-2:])
        rows, columns = (_kept(n, self.input_size) for n in target)
        if min(planes.shape[-2:]) == self.resize:
            found = planes[:, rows, columns]
        else:
            scaled = (resized(p, target, rows, columns, self.interpolation) for p in planes)
            found = np.stack([_to_bytes(plane) for plane in scaled])
        y, x = (self.input_size - n for n in found.shape[-2:])
        if y or x:
            found = np.pad(found, [(0, 0), (y // 2, (y + 1) // 2), (x // 2, (x + 1) // 2)])
        return np.ascontiguousarray(found)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """Height and width once the short side has `resize` pixels."""
        long = int(self.resize * max(height, width) / min(height, width))
        return (self.resize, long) if height <= width else (long, self.resize)

    def normalise(self, unit: torch.Tensor) -> torch.Tensor:
        """Map RGB in [0, 1], shape (N, 3, H, W), to the model's input."""
        mean = unit.new_tensor(self.mean).view(1, 3, 1, 1)
        std = unit.new_tensor(self.std).view(1, 3, 1, 1)
        return (unit - mean) / std

    def prepared(self, unit: np.ndarray) -> np.ndarray:
        """Map what `fit` gives to the model's input, float32 of shape (1, 3, H, W).

        Bit for bit `normalise` of its values divided by 255.
        """
        mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (self.mean, self.std))
        return np.asarray((unit[None].astype(np.float32) / np.float32(255) - mean) / std)

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


def _to_bytes(levels: np.ndarray) -> np.ndarray:
    return np.asarray(np.rint(np.clip(levels, 0, 255)), np.uint8)


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
