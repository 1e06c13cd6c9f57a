"""The one way from a picture file to pixels: RGB, uint8, as it is meant to be seen.

Attacks, pictures that are shown, and the head worker all come through here, so that what was
attacked is what is deployed. It runs in the enclave too: Pillow and numpy alone. What becomes of
which kind of picture also stands in docs/reference/pictures.md:

- 8-bit RGB, grey, palette, CMYK, YCbCr, HSV and LAB: as Pillow converts them; profiles (ICC) are
  not applied. 1 bit: black and white.
- 16 bits a channel: the high byte, in grey (here) and in colour (Pillow's own decoders). 12-bit
  TIFF: the upper 8 bits. 32-bit integers are taken for 16-bit values if all are in 0..65535 and one
  is above 255; float values must lie in [0, 1] and are multiplied by 255. Any other range is
  refused, since its scale would be a guess.
- Transparency: composed over black. Orientation (EXIF): applied. Several frames: the first.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import PictureError, first_line

# As many as Pillow warns at. A decoded picture takes 4 bytes a pixel, its float copy 12.
MAX_PIXELS = 89_478_485
_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_ZERO_IS = 258, 262
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


def read(
    file: str | Path | IO[bytes],
    most_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] | None = None,
) -> np.ndarray:
    """Decode a picture; return uint8 RGB of shape (H, W, 3).

    Args:
        file: A path, or a binary file at its start.
        most_pixels: More than these, as the file announces them, are not decoded.
        formats: Pillow's names of the formats that may be tried; None: all of them.

    Raises:
        PictureError: ``too-large``, or ``bad-image`` for whatever Pillow made of damaged bytes.
        OSError: The file cannot be opened or read (an error that has a number).
        ImportError: A part of Pillow is missing.
    """
    try:
        with Image.open(file, formats=formats) as image:
            if image.width * image.height > most_pixels:
                raise PictureError("too-large", f"has more than {most_pixels} pixels")
            return rgb(image)
    except (PictureError, ImportError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError("too-large", "has too many pixels") from None
    except MemoryError:
        raise PictureError("too-large", "does not fit into memory") from None
    except Exception as error:  # decoders raise whatever they like on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise
        text = first_line(error, 80)
        if isinstance(error, UnidentifiedImageError):
            text = "is no picture that can be decoded here"
        raise PictureError("bad-image", text) from None


def rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an opened picture as uint8 RGB of shape (H, W, 3).

    Raises:
        PictureError: It has no pixels, or values whose scale is not known.
        Exception: Whatever Pillow raises on damaged bytes.
    """
    image.load()
    if not image.width or not image.height:
        raise PictureError("bad-image", "has no pixels")
    pixels = _grey(image) if image.mode in _DEEP else _colour(image)
    return _upright(pixels, _orientation(image))


def _colour(image: Image.Image) -> np.ndarray:
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        # Pillow has cut the pixels to 8 bits, and the key would fit none of them.
        raise PictureError("bad-image", "has a 16-bit transparent colour; save it with 8 bits")
    # Pillow knows no way from premultiplied grey to colour.
    layered = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    black = Image.new("RGB", layered.size)
    black.paste(layered.convert("RGB"), mask=layered.getchannel("A"))
    return np.array(black)


def _grey(image: Image.Image) -> np.ndarray:
    """One channel of more than 8 bits."""
    if _tag(image, _TIFF_ZERO_IS) == 0:  # Pillow inverts such pictures of 8 bits only
        raise PictureError("bad-image", "has 0 for white in more than 8 bits; save it anew")
    values = np.array(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (np.isfinite(low) and np.isfinite(high) and low >= 0 and high <= 1):
            raise PictureError(
                "bad-image",
                f"has float values from {low:g} to {high:g}; only those in [0, 1] have a known "
                "scale, save it with 8 or 16 bits",
            )
        grey = np.rint(values * 255)
    elif image.mode == "I":
        sixteen = image.format in ("PNG", "PPM")  # Pillow's mode for their 16 bits
        if low < 0 or high > 65535 or (high <= 255 and not sixteen):
            raise PictureError(
                "bad-image",
                f"has 32-bit integers from {low} to {high}, whose scale is not known; save it "
                "with 8 or 16 bits",
            )
        grey = values >> 8
    else:
        # A TIFF of 12 bits keeps them in 16, unscaled.
        grey = values >> (4 if _tag(image, _TIFF_BITS) in (12, (12,)) else 8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey = np.where(values == key, 0, grey)
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def _tag(image: Image.Image, number: int) -> object:
    """A tag of a TIFF; None where there is none."""
    tags = getattr(image, "tag_v2", None)
    return None if tags is None else tags.get(number)


def _orientation(image: Image.Image) -> int:
    """1 to 8, as in EXIF; 1 where there is none, or none that can be read, as viewers do."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except (struct.error, LookupError, SyntaxError, TypeError, ValueError, OverflowError, Warning):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the orientation that a picture was stored in."""
    if orientation >= 5:  # rows and columns are exchanged
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
