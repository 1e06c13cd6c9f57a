"""What the head worker takes for an image."""

import io

import pytest
import torch
from PIL import Image

from partopt.enclave_runner.inside.decoding import decoded
from partopt.enclave_runner.program.parts import Limits
from partopt.errors import ServiceError
from partopt.preprocessing import Preprocessing

P = Preprocessing(8, 8, (0.5,) * 3, (0.25,) * 3)
LIMITS = Limits(batch=1, image_bytes=1 << 20, image_pixels=16 * 16)


def encoded(side: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (255, 0, 127)).save(file, kind)
    return file.getvalue()


def test_an_image_becomes_the_models_input():
    x = decoded(encoded(16), P, LIMITS)
    assert x.shape == (1, 3, 8, 8)
    wanted = torch.tensor([2.0, -2.0, (127 / 255 - 0.5) / 0.25])
    torch.testing.assert_close(torch.from_numpy(x)[0, :, 3, 3], wanted)


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (encoded(17), "too-large"),
        (encoded(16, "GIF"), "bad-image"),
        (encoded(16, "TIFF"), "bad-image"),
        (encoded(16)[:60], "bad-image"),
    ],
)
def test_what_is_too_large_or_of_another_format_is_refused(image, code):
    """A few bytes may say a million pixels; decoders for other formats are not needed inside."""
    with pytest.raises(ServiceError) as caught:
        decoded(image, P, LIMITS)
    assert caught.value.code == code
