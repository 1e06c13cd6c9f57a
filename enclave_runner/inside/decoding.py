"""From a client's bytes to the network's input, inside the enclave."""

from __future__ import annotations

import io

import numpy as np
from PIL import (
    BmpImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ...errors import PictureError, ServiceError
from ...pixels import read
from ...preprocessing import Preprocessing
from ..program.parts import Limits
from ..wire.accepted import FORMATS
from .scans import effort_of

# Imported before the first image: an enclave may only open what was seen to be opened. MPO and TIFF
# are what Pillow needs for a JPEG of several pictures, and for EXIF.
_DECODERS = (BmpImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin)
_ON_DEMAND = (MpoImagePlugin, TiffImagePlugin)


def decoded(image: bytes, preprocessing: Preprocessing, limits: Limits) -> np.ndarray:
    """An encoded image as the model's input, shape (1, 3, H, W).

    Raises:
        ServiceError: ``bad-image`` or ``too-large``.
        OSError, ImportError: The worker lacks a file; that is no fault of the image.
    """
    try:
        effort_of(image)
        pixels = read(io.BytesIO(image), limits.image_pixels, FORMATS)
        unit = preprocessing.fit(pixels)
    except PictureError as error:
        if error.code == "too-large":
            raise ServiceError("too-large", f"the image {error}") from None
        raise ServiceError(
            "bad-image", f"the bytes are no usable JPEG, PNG, WebP or BMP ({error})"
        ) from None
    return preprocessing.prepared(unit)
