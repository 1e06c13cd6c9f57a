"""Pictures of every kind give the pixels that their plain 8-bit RGB twin has."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from partopt.errors import PictureError
from partopt.images.dead_leaves import dead_leaves
from partopt.pixels import read, rgb

TWIN = dead_leaves(1, 24, seed=4)[0].transpose(1, 2, 0)[:, :16].copy()  # 24 high, 16 wide
GREY = TWIN[..., 1]
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encoded(image: Image.Image, kind: str, **how) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **how)
    file.seek(0)
    return file


def png(width: int, height: int, depth: int, colour: int, rows: bytes, more: bytes = b""):
    """A PNG by hand: Pillow writes no 16-bit colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    key = chunk(b"tRNS", more) if more else b""
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + body)


def deep(values: np.ndarray) -> bytes:
    """Big-endian rows of a 16-bit PNG."""
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)


def near(found: np.ndarray, wanted: np.ndarray, levels: int = 1) -> None:
    assert found.dtype == np.uint8
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= levels


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def test_eight_bits_are_as_pillow_has_them():
    assert np.array_equal(read(encoded(Image.fromarray(TWIN), "PNG")), TWIN)
    jpeg = encoded(Image.fromarray(TWIN), "JPEG")
    with Image.open(jpeg) as image:
        assert np.array_equal(rgb(image), np.array(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000", "PPM"])
@pytest.mark.parametrize("scale", [257, 256])
def test_sixteen_bits_give_the_twin(kind, scale):
    values = GREY.astype(np.uint16) * scale
    near(read(encoded(Image.fromarray(values), kind)), grey(GREY))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_sixteen_bits_of_every_order(mode):
    values = GREY.astype({"I;16B": ">u2", "I": "<i4"}.get(mode, "<u2")) * 257
    image = Image.frombytes(mode, GREY.shape[::-1], values.tobytes())
    near(rgb(image), grey(GREY), 0)


def test_sixteen_bits_of_colour_and_alpha():
    near(read(png(16, 24, 16, 2, deep(TWIN.astype(int) * 257))), TWIN, 0)
    half = np.dstack([TWIN.astype(int) * 257, np.full(GREY.shape, 0x8080)])
    near(read(png(16, 24, 16, 6, deep(half))), TWIN.astype(int) * 128 // 255)
    with pytest.raises(PictureError, match="16-bit transparent colour"):
        read(png(16, 24, 16, 2, deep(TWIN.astype(int) * 257), b"\x12\x34" * 3))


def test_the_transparent_grey_of_sixteen_bits_is_black():
    values = GREY.astype(int) * 257
    key = int(values[0, 0])
    found = read(png(16, 24, 16, 0, deep(values), struct.pack(">H", key)))
    near(found, grey(np.where(values == key, 0, GREY)), 0)


def test_a_tiff_of_twelve_bits_is_not_read_as_sixteen():
    file = encoded(Image.fromarray(np.full((2, 2), 0x0FFF, np.uint16)), "TIFF")
    with Image.open(file) as image:
        image.load()
        image.tag_v2[258] = (12,)
        assert (rgb(image) == 255).all()
        image.tag_v2[262] = 0
        with pytest.raises(PictureError, match="0 for white"):
            rgb(image)


def test_float_values_are_scaled_or_refused():
    unit = (GREY / 255).astype(np.float32)
    near(read(encoded(Image.fromarray(unit), "TIFF")), grey(GREY), 0)
    for bad in (unit * 255, unit - 0.1, np.where(unit > 0.5, np.nan, unit), unit + np.inf):
        with pytest.raises(PictureError, match=r"float values from .* known scale"):
            rgb(Image.fromarray(bad.astype(np.float32)))


def test_integers_of_unknown_scale_are_refused():
    whole = GREY.astype(np.int32)
    near(read(encoded(Image.fromarray(whole * 257), "TIFF")), grey(GREY), 0)
    for bad in (whole * 258, whole - 300, whole):  # the last: 8 bits, or a dark picture of 16?
        with pytest.raises(PictureError, match="32-bit integers from"):
            rgb(Image.fromarray(bad))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_modes_are_as_pillow_converts_them(mode):
    image = Image.fromarray(TWIN).convert(mode)
    assert np.array_equal(rgb(image), np.array(image.convert("RGB")))


def test_lab_gives_the_colour():
    from PIL import ImageCms

    made = ImageCms.createProfile
    to_lab = ImageCms.buildTransform(made("sRGB"), made("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.fromarray(TWIN), to_lab)
    near(read(encoded(lab, "TIFF")), TWIN, 8)


def test_transparency_is_composed_over_black():
    alpha = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (24, 1))
    wanted = TWIN.astype(float) * alpha[..., None] / 255
    layered = Image.fromarray(np.dstack([TWIN, alpha]))
    for kind, how in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        near(read(encoded(layered, kind, **how)), wanted)
    dark = GREY.astype(float) * alpha / 255
    near(read(encoded(Image.fromarray(np.dstack([GREY, alpha]), "LA"), "PNG")), grey(dark))
    near(rgb(layered.convert("RGBa")), wanted, 2)
    near(rgb(layered.convert("LA").convert("La")), rgb(layered.convert("LA")), 2)


def test_transparent_colours_of_palettes_and_keys_are_black():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    wanted = np.array([[[0, 0, 0], [40, 50, 60]]])
    for kind, key in (("PNG", 0), ("GIF", 0), ("PNG", b"\x00\xff")):
        assert np.array_equal(read(encoded(image, kind, transparency=key)), wanted), (kind, key)
    half = read(encoded(image, "PNG", transparency=b"\x80\xff"))
    near(half, np.array([[[5, 10, 15], [40, 50, 60]]]))
    pa = image.convert("PA")
    pa.putalpha(Image.fromarray(np.array([[0, 255]], np.uint8)))
    assert np.array_equal(rgb(pa), wanted)
    coloured = encoded(Image.fromarray(TWIN), "PNG", transparency=tuple(map(int, TWIN[0, 0])))
    found = read(coloured)
    assert not found[0, 0].any()
    assert np.array_equal(found[(TWIN[0, 0] != TWIN).any(2)], TWIN[(TWIN[0, 0] != TWIN).any(2)])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("number", range(1, 9))
def test_all_orientations_are_undone(kind, number):
    """What is stored turned is seen as its twin that is not."""
    if kind not in {Image.registered_extensions().get(s) for s in Image.registered_extensions()}:
        pytest.skip(f"this Pillow has no {kind}")
    upright = Image.fromarray(np.kron(TWIN[::8, ::8], np.ones((16, 16, 1), np.uint8)))
    stored = upright.transpose(TURNS[number]) if number > 1 else upright
    tag = Image.Exif()
    tag[0x0112] = number
    how = {"exif": tag} | ({} if kind in ("PNG", "TIFF") else {"quality": 95})
    near(read(encoded(stored, kind, **how)), np.array(upright), 40 if "quality" in how else 0)


@pytest.mark.parametrize("value", [0, 9, "six", b"\xff"])
def test_an_orientation_that_is_none_is_ignored(value, monkeypatch):
    image = Image.fromarray(TWIN)
    monkeypatch.setattr(image, "getexif", lambda: {0x0112: value})
    assert np.array_equal(rgb(image), TWIN)


def test_damaged_exif_does_not_cost_the_picture():
    file = encoded(Image.fromarray(TWIN), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0\0")
    assert np.array_equal(read(file), TWIN)


def test_the_first_of_several_frames():
    frames = [Image.fromarray(np.full((4, 4, 3), level, np.uint8)) for level in (200, 10)]
    for kind, how in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **how)
        assert (read(file) == 200).all(), kind


@pytest.mark.parametrize(
    "error",
    [
        IndexError("index"),
        KeyError("k"),
        struct.error("short"),
        zlib.error("-3"),
        OverflowError("big"),
        AttributeError("none"),
        AssertionError(),
        RecursionError("deep"),
        EOFError(),
        TypeError("t"),
        SyntaxError("bad"),
        OSError("truncated"),
        UserWarning("w"),
        UnicodeDecodeError("ascii", b"x", 0, 1, "bad"),
    ],
)
def test_whatever_a_decoder_raises_is_a_bad_image(error, monkeypatch):
    def broken(self):
        raise error

    file = encoded(Image.fromarray(TWIN), "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", broken)
    with pytest.raises(PictureError) as caught:
        read(file)
    assert caught.value.code == "bad-image"
    assert str(caught.value)


@pytest.mark.parametrize("error", [ImportError("gone"), PermissionError(13, "denied")])
def test_what_the_machine_lacks_is_no_bad_image(error, monkeypatch):
    def broken(self):
        raise error

    file = encoded(Image.fromarray(TWIN), "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", broken)
    with pytest.raises(type(error)):
        read(file)


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    with pytest.raises(PictureError) as caught:
        read(png(40_000, 40_000, 8, 2, b""))  # Pillow's error
    assert caught.value.code == "too-large"
    with pytest.raises(PictureError) as caught:
        read(png(10_000, 10_000, 8, 2, b""))  # Pillow's warning
    assert caught.value.code == "too-large"
    with pytest.raises(PictureError, match="more than 100 pixels") as caught:
        read(encoded(Image.fromarray(TWIN), "PNG"), most_pixels=100)
    assert caught.value.code == "too-large"

    def full(self):
        raise MemoryError

    file = encoded(Image.fromarray(TWIN), "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", full)
    with pytest.raises(PictureError, match="memory") as caught:
        read(file)
    assert caught.value.code == "too-large"


def test_truncated_and_empty_files():
    whole = encoded(Image.fromarray(TWIN), "JPEG").getvalue()
    for bad in (b"", b"x" * 99, whole[: len(whole) // 2]):
        with pytest.raises(PictureError) as caught:
            read(io.BytesIO(bad))
        assert caught.value.code == "bad-image"
