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
from .memory import give_back
from .scans import check_scans

# Imported before the first image: an enclave may only open what was seen to be opened. MPO and TIFF
# are what Pillow needs for a JPEG of several pictures, and for EXIF.
_DECODERS = (BmpImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin)
_ON_DEMAND = (MpoImagePlugin, TiffImagePlugin)
_LARGE = 2_000_000  # pixels from which on memory is given back


def decoded(image: bytes, preprocessing: Preprocessing, limits: Limits) -> np.ndarray:
    """An encoded image as the model's input, shape (1, 3, H, W).

    Raises:
        ServiceError: ``bad-image`` or ``too-large``.
        OSError, ImportError: The worker lacks a file; that is no fault of the image.
    """
    try:
        check_scans(image)
        pixels = read(io.BytesIO(image), limits.image_pixels, FORMATS)
        large = pixels.shape[0] * pixels.shape[1] > _LARGE
        unit = preprocessing.fit(pixels)
    except PictureError as error:
        if error.code == "too-large":
            raise ServiceError("too-large", f"the image {error}") from None
        raise ServiceError(
            "bad-image", f"the bytes are no usable JPEG, PNG, WebP or BMP ({error})"
        ) from None
    if large:
        del pixels
        give_back()
    return preprocessing.prepared(unit)
