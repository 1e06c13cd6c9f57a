"""Small pictures of every kind that the head decodes, and some that it must refuse.

Formats by what Pillow reads in a way of its own: modes, depths, compressions, metadata, several
frames. What Pillow cannot write (PNG of 16 bits a channel, run-length BMP) is put together here.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageCms

from partopt.images.dead_leaves import dead_leaves

SIDE = (40, 36)  # width, height


def _encoded(image: Image.Image, kind: str, **how) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def _exif(orientation: int = 1, more: bool = False) -> bytes:
    """EXIF as cameras write it: with `more`, times, a rational, a maker's note and GPS."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    if more:
        exif[0x010F], exif[0x0110] = "Maker", "Phone 3"
        inner = exif.get_ifd(0x8769)
        inner[0x9003], inner[0x829A], inner[0x927C] = "2024:05:06 07:08:09", 0.01, b"\1\2\3" * 99
        exif.get_ifd(0x8825)[1] = "N"
    return exif.tobytes()


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _deep_png(pixels: np.ndarray, colour: int, interlaced: bool = False) -> bytes:
    """A PNG of 16 bits a channel, or of 8 if `pixels` are, from (H, W, channels)."""
    height, width, _ = pixels.shape
    passes = [(0, 0, 1, 1)]
    if interlaced:  # Adam7: first column, first row, steps
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4)]
        passes += [(1, 0, 2, 2), (0, 1, 1, 2)]
    raw = b"".join(
        b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes()
        for x, y, across, down in passes
        for row in pixels[y::down, x::across]
    )
    bits = pixels.dtype.itemsize * 8
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*c) for c in chunks)


def _run_length_bmp(indices: np.ndarray, palette: np.ndarray) -> bytes:
    """A BMP of 8 bits with runs, from (H, W) indices and a palette of (256, 3)."""
    height, width = indices.shape
    data = b"".join(b"".join(bytes((1, int(i))) for i in row) + b"\0\0" for row in indices[::-1])
    data += b"\0\1"
    table = b"".join(bytes((int(b), int(g), int(r), 0)) for r, g, b in palette)
    start = 14 + 40 + len(table)
    header = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
    header += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return header + table + data


def _jpegs(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    yield "plain", _encoded(image, "JPEG")
    for name, sampling in (("444", 0), ("422", 1), ("420", 2)):
        yield name, _encoded(image, "JPEG", subsampling=sampling, quality=95)
    yield "progressive", _encoded(image, "JPEG", progressive=True)
    yield "optimised", _encoded(image, "JPEG", optimize=True)
    yield "restarts", _encoded(image, "JPEG", restart_marker_blocks=3)
    for mode in ("L", "CMYK", "1"):
        yield mode, _encoded(image.convert(mode), "JPEG")
    yield "progressive CMYK", _encoded(image.convert("CMYK"), "JPEG", progressive=True)
    for orientation in range(1, 9):
        yield f"orientation {orientation}", _encoded(image, "JPEG", exif=_exif(orientation))
    yield "camera", _encoded(image, "JPEG", exif=_exif(6, more=True), dpi=(300, 300))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "profile", _encoded(image, "JPEG", icc_profile=profile, comment="a comment")
    yield "xmp", _encoded(image, "JPEG", xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")
    small = image.resize((8, 8))
    both = {"save_all": True, "append_images": [small]}
    yield "mpo", _encoded(image, "MPO", **both)
    yield "mpo with exif", _encoded(image, "MPO", exif=_exif(8, more=True), **both)


def _pngs(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    for mode in ("RGB", "L", "1", "P", "LA", "RGBA"):
        yield mode, _encoded(image.convert(mode), "PNG")
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 251
    yield "16 bits", _encoded(Image.fromarray(grey), "PNG")
    colour = np.asarray(image).astype(np.uint16) * 251
    yield "16 bits colour", _deep_png(colour, 2)
    yield "16 bits alpha", _deep_png(np.dstack([colour, grey]), 6)
    yield "16 bits grey alpha", _deep_png(np.dstack([grey, grey[::-1]]), 4)
    yield "interlaced", _deep_png(np.asarray(image), 2, interlaced=True)
    few = image.quantize(13)
    yield "4 bits palette", _encoded(few, "PNG", bits=4)
    yield "clear index", _encoded(few, "PNG", transparency=3)
    yield "half clear palette", _encoded(few, "PNG", transparency=bytes(range(0, 130, 10)))
    yield "clear colour", _encoded(image, "PNG", transparency=image.getpixel((3, 3)))
    yield "clear grey", _encoded(image.convert("L"), "PNG", transparency=100)
    yield "exif", _encoded(image, "PNG", exif=_exif(5, more=True), dpi=(72, 72))
    yield (
        "profile",
        _encoded(
            image,
            "PNG",
            icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        ),
    )
    yield "animated", _encoded(image, "PNG", save_all=True, append_images=[image.rotate(90)])


def _webps(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    clear = image.convert("RGBA")
    clear.putalpha(image.convert("L"))
    yield "lossy", _encoded(image, "WEBP")
    yield "lossless", _encoded(image, "WEBP", lossless=True)
    yield "alpha", _encoded(clear, "WEBP")
    yield "lossless alpha", _encoded(clear, "WEBP", lossless=True)
    yield "exif", _encoded(image, "WEBP", exif=_exif(7, more=True))
    yield "animated", _encoded(image, "WEBP", save_all=True, append_images=[image.rotate(90)])


def _bmps(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    for mode in ("RGB", "L", "1", "P", "RGBA"):
        yield mode, _encoded(image.convert(mode), "BMP")
    few = image.quantize(256)
    palette = np.zeros((256, 3), np.uint8)
    given = np.array(few.getpalette(), np.uint8).reshape(-1, 3)
    palette[: len(given)] = given
    yield "runs", _run_length_bmp(np.asarray(few), palette)


def pictures() -> dict[str, bytes]:
    """Pictures that are answered, by format and kind; the same bytes each time."""
    width, height = SIDE
    leaves = dead_leaves(1, max(SIDE), seed=7)[0].transpose(1, 2, 0)[:height, :width]
    image = Image.fromarray(np.ascontiguousarray(leaves))
    families = {"jpeg": _jpegs, "png": _pngs, "webp": _webps, "bmp": _bmps}
    return {f"{f} {kind}": data for f, make in families.items() for kind, data in make(image)}


def damaged() -> dict[str, bytes]:
    """Pictures that are refused: cut off in the middle, or with nothing but a beginning."""
    whole = pictures()
    chosen = [n for n in whole if n.split()[1] in ("plain", "mpo", "RGB", "lossy", "exif", "16")]
    found = {f"{name}, a third": whole[name][: len(whole[name]) // 3] for name in chosen}
    found |= {f"{name}, 12 bytes": whole[name][:12] for name in chosen}
    return found
