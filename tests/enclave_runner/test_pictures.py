"""The head worker sees the pixels that attacks were given, whatever the picture's kind."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from partopt.enclave_runner.inside import rehearsal
from partopt.enclave_runner.inside.decoding import decoded
from partopt.enclave_runner.pictures import sendable
from partopt.enclave_runner.program.parts import Limits
from partopt.errors import PictureError, ServiceError
from partopt.images.dead_leaves import dead_leaves
from partopt.preprocessing import Preprocessing

HOW = Preprocessing(16, 18, (0.0,) * 3, (1.0,) * 3)
TWIN = np.kron(dead_leaves(1, 4, seed=1)[0].transpose(1, 2, 0), np.ones((8, 8, 1), np.uint8))


def encoded(image: Image.Image, kind: str, **how) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def seen(data: bytes) -> torch.Tensor:
    return torch.from_numpy(decoded(sendable(data), HOW, Limits()))[0] * 255


def kinds() -> dict[str, tuple[bytes, int]]:
    image = Image.fromarray(TWIN)
    turned = Image.Exif()
    turned[0x0112] = 6
    opaque = np.dstack([TWIN, np.full(TWIN.shape[:2], 255, np.uint8)])
    found = {
        "png": (encoded(image, "PNG"), 0),
        "jpeg": (encoded(image, "JPEG", quality=98, subsampling=0), 6),
        "exif": (encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=turned), 0),
        "alpha": (encoded(Image.fromarray(opaque), "PNG"), 0),
        "gif": (encoded(image, "GIF"), 0),
        "tiff": (encoded(image, "TIFF"), 0),
        "webp": (encoded(image, "WEBP", lossless=True), 0),
        "bmp": (encoded(image, "BMP"), 0),
        "mpo": (encoded(image, "MPO", save_all=True, append_images=[image], quality=98), 20),
    }
    if ".avif" in Image.registered_extensions():
        found["avif"] = (encoded(image, "AVIF", quality=100, subsampling="4:4:4"), 6)
    return found


@pytest.mark.parametrize("kind", kinds())
def test_the_head_sees_the_twin(kind):
    data, levels = kinds()[kind]
    assert (
        float((seen(data) - torch.from_numpy(HOW.fit(TWIN)).float()).abs().max()) <= levels + 0.01
    )


def test_sixteen_bits_and_transparency():
    grey = TWIN[..., 0]
    deep = encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    flat = encoded(Image.fromarray(grey), "PNG")
    assert torch.equal(seen(deep), seen(flat))
    clear = encoded(Image.fromarray(np.dstack([TWIN, np.zeros(TWIN.shape[:2], np.uint8)])), "PNG")
    assert not seen(clear).any()


def test_only_other_formats_are_converted_before_sending():
    for kind in ("png", "jpeg", "bmp", "webp", "mpo"):
        data = kinds()[kind][0]
        assert sendable(data) is data
    assert sendable(kinds()["tiff"][0]).startswith(b"\x89PNG")
    for bad in (b"", b"no image"):
        assert sendable(bad) is bad
    with pytest.raises(PictureError, match="float values"):
        sendable(encoded(Image.new("F", (4, 4), 7.0), "TIFF"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (IndexError("x"), "bad-image"),
        (KeyError("x"), "bad-image"),
        (OSError("torn"), "bad-image"),
        (MemoryError(), "too-large"),
    ],
)
def test_what_a_decoder_raises_is_a_code(error, code, monkeypatch):
    def broken(self):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", broken)
    with pytest.raises(ServiceError) as caught:
        decoded(kinds()["png"][0], HOW, Limits())
    assert caught.value.code == code


@pytest.mark.parametrize("error", [ImportError("PIL.X"), PermissionError(13, "denied")])
def test_what_the_worker_lacks_is_not_blamed_on_the_image(error, monkeypatch):
    def broken(self):
        raise error

    data = kinds()["png"][0]
    monkeypatch.setattr(ImageFile.ImageFile, "load", broken)
    with pytest.raises(type(error)):
        decoded(data, HOW, Limits())


def test_a_thin_picture_is_answered_and_a_large_one_refused():
    thin = encoded(Image.new("RGB", (8000, 1), (9, 9, 9)), "PNG")
    assert (seen(thin).round() == 9).all()
    with pytest.raises(ServiceError) as caught:
        decoded(thin, HOW, Limits(image_pixels=7999))
    assert caught.value.code == "too-large"


def test_the_rehearsal_opens_what_any_kind_of_picture_needs():
    """In the enclave, a module that was not seen in the rehearsal cannot be imported later."""
    import subprocess
    import sys

    code = (
        "import sys, io\n"
        "from partopt.enclave_runner.inside import head, rehearsal\n"
        "from partopt.enclave_runner.inside.decoding import decoded\n"
        "from partopt.enclave_runner.program.parts import Limits\n"
        "from partopt.preprocessing import *\n"
        "how = Preprocessing(16, 18)\n"
        "for p in rehearsal._pictures(16): decoded(p, how, Limits())\n"
        "before = set(sys.modules)\n"
        "for p in eval(sys.stdin.read()): decoded(p, how, Limits())\n"
        "print(sorted(set(sys.modules) - before))"
    )
    sent = repr(
        [data for kind, (data, _) in kinds().items() if kind not in ("gif", "tiff", "avif")]
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=sent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    assert sum(1 for _ in rehearsal._pictures(16)) >= 8
