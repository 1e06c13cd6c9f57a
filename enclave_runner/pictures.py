"""Pictures on the client's side, before they are encrypted for the head worker."""

from __future__ import annotations

import io
import warnings

from PIL import Image

from ..images.folders import formats
from ..pixels import read
from .wire.accepted import FORMATS

_TAKEN = {*FORMATS, "MPO"}  # a JPEG of several pictures


def sendable(data: bytes) -> bytes:
    """The bytes of a picture in a format that the head decodes.

    It decodes few, since every decoder in the enclave is code to trust. Other formats are decoded
    here, as attacks decode them, and sent as a PNG of the same pixels. What is no picture is sent
    as it is: the head says what is wrong with it.

    Raises:
        PictureError: A picture of another format that is damaged, too large, or of unknown scale.
    """
    with warnings.catch_warnings():  # what a decoder thinks of a picture is nobody's to read
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=formats()) as image:
                if image.format in _TAKEN:
                    return data
        except Exception:  # decoders raise whatever they like on damaged files
            return data
        file = io.BytesIO()
        Image.fromarray(read(io.BytesIO(data), formats=formats())).save(file, "PNG")
    return file.getvalue()
