"""Nobody is charged for what it did not cause, and nobody gets away with less than it cost."""

from __future__ import annotations

import io
import random
import time

import pytest
from PIL import Image, ImageFile

from partopt.enclave_runner.inside import scans
from partopt.enclave_runner.inside.decoding import decoded
from partopt.enclave_runner.inside.prices import Prices
from partopt.enclave_runner.program.parts import Limits
from partopt.errors import ServiceError
from partopt.preprocessing import Preprocessing

HOW, LIMITS = Preprocessing(32, 36), Limits()


@pytest.fixture(scope="module")
def prices():
    return Prices(HOW, LIMITS)


def kinds(side: int) -> dict[str, bytes]:
    """Pictures of the dearest and the cheapest contents, in all formats."""
    noise = Image.frombytes("RGB", (side, side), random.Random(side).randbytes(3 * side**2))
    best = {"quality": 100, "subsampling": 0}
    found = {}
    for name, plain in (("noise", noise), ("flat", Image.new("RGB", (side, side), (9, 99, 200)))):
        for kind, mode, how in (
            ("JPEG", "RGB", best),
            ("JPEG", "CMYK", {"progressive": True, **best}),
            ("PNG", "RGBA", {"compress_level": 9}),
            ("PNG", "P", {}),
            ("WEBP", "RGB", {}),
            ("WEBP", "RGBA", {"lossless": True, "method": 0}),
            ("BMP", "RGB", {}),
        ):
            file = io.BytesIO()
            plain.convert(mode).save(file, kind, **how)
            found[f"{side} {name} {kind} {mode}"] = file.getvalue()
    return found


def test_what_a_picture_may_cost_is_more_than_it_costs(prices, monkeypatch):
    """By the processor's time, so that a busy machine spoils nothing."""
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 1 << 24)
    for name, data in (kinds(16) | kinds(600)).items():
        took = []
        for _ in range(3):
            begun = time.thread_time()
            decoded(data, HOW, LIMITS)
            took.append(time.thread_time() - begun)
        assert min(took) < prices.most(data), name


def test_what_was_measured_is_charged(prices):
    data = kinds(600)["600 noise JPEG RGB"]
    usual = prices.most(data) / 4
    assert usual <= prices.of_picture(data, usual) < 2 * usual
    assert prices.of_picture(data, 1e-5) == 1e-5


def test_looking_at_a_picture_is_charged_too(prices, monkeypatch):
    """Its header may be what is dear."""
    data = kinds(600)["600 noise JPEG RGB"]
    real = scans.effort_of

    def slowly(image):
        end = time.thread_time() + usual
        while time.thread_time() < end:
            pass
        return real(image)

    usual = prices.most(data) / 4
    monkeypatch.setattr("partopt.enclave_runner.inside.prices.effort_of", slowly)
    assert prices.of_picture(data, usual) >= 2 * usual


def test_a_pause_is_not_charged(prices):
    """Nor is it to a picture that is refused: of one that is none, nothing is decoded."""
    small, large = kinds(16)["16 flat PNG P"], kinds(600)["600 flat PNG P"]
    for data in (small, b"no picture", b""):
        assert prices.of_picture(data, 3600.0) < 0.05
    assert prices.of_picture(large, 3600.0) > 5 * prices.of_picture(small, 3600.0)
    assert prices.of_picture(small, -3600.0) == 0


def test_a_picture_that_is_too_large_costs_its_header(prices):
    """It is refused by its header, before anything of it is decoded."""
    file = io.BytesIO()
    Image.new("1", (8000, 8000)).save(file, "PNG")
    data = file.getvalue()
    with pytest.raises(ServiceError, match="pixels"):
        decoded(data, HOW, LIMITS)
    begun = time.thread_time()
    with pytest.raises(ServiceError):
        decoded(data, HOW, LIMITS)
    assert time.thread_time() - begun < prices.most(data) < 0.2


def test_each_is_charged_the_usual_pass():
    prices = Prices(HOW, LIMITS)
    assert prices.of_pass(1.0, tried=0.01) == 0.01, "a pause in the first pass of all"
    charges = [prices.of_pass(s, 0.01) for s in [0.01] * 20 + [5.0, -5.0] + [0.012] * 100]
    assert max(charges) == pytest.approx(0.012)
    assert min(charges) == pytest.approx(0.01), "a clock that was set back makes none free"
    assert charges[-1] == pytest.approx(0.012), "it follows the machine"


def test_a_clock_that_is_set_while_it_measures_spoils_nothing():
    source = random.Random(1)

    def clock() -> float:
        leap = 3600.0 * source.choice([-1, 1]) if source.random() < 0.1 else 0.0
        return time.thread_time() + leap

    assert Prices(HOW, LIMITS, clock).most(b"") < 0.1
