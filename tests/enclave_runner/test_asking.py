"""Many images over one session: refusals that pass are waited out, a lost place is taken anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from partopt.enclave_runner import asking
from partopt.enclave_runner.asking import Asking, connected
from partopt.errors import PictureError, ServiceError

PATHS = [Path(str(i)) for i in range(8)]


class Fake:
    """A session of a head worker that refuses as it is told to, by the images that come."""

    def __init__(self, refusals: dict[bytes, list[str]], ended: bool = False) -> None:
        self.refusals, self.over, self.closed = refusals, "", False
        self.images: dict[int, bytes] = {}
        self.most = 0

    def submit(self, image: bytes) -> int:
        if self.over:
            raise ServiceError(self.over, "over")
        self.images[len(self.images)] = image
        return len(self.images) - 1

    def collect(self, number: int) -> bytes:
        image = self.images[number]
        if self.over:
            raise ServiceError(self.over, "over")
        left = self.refusals.get(image, [])
        if left:
            code = left.pop(0)
            if code in ("full", "idle"):
                self.over = code
            raise ServiceError(code, "refused")
        return image

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(asking, "_PAUSE_S", 0.001)


def read(path: Path) -> bytes:
    return path.name.encode()


def asked(refusals, window=3, patience=5.0):
    sessions = []

    def connect():
        sessions.append(Fake(refusals))
        return sessions[-1]

    with Asking(connect, patience) as every:
        found = list(every.all(PATHS, read, window))
    assert [path for path, _ in found] == PATHS
    assert all(s.closed for s in sessions), "no session is left open"
    return [answer for _, answer in found], sessions


@pytest.mark.parametrize("code", ["busy", "starting", "tail-lost"])
def test_who_is_refused_for_a_while_asks_again(code):
    answers, sessions = asked({b"2": [code] * 3, b"5": [code]})
    assert answers == [read(p) for p in PATHS]
    assert len(sessions) == 1


@pytest.mark.parametrize("code", ["full", "idle"])
@pytest.mark.parametrize("window", [1, 3, 16])
def test_who_lost_its_place_takes_another(code, window):
    """All of what was under way is asked for again, over one new session."""
    answers, sessions = asked({b"2": [code], b"6": [code]}, window)
    assert answers == [read(p) for p in PATHS]
    assert len(sessions) == 3


@pytest.mark.parametrize("code", ["bad-image", "too-large", "late", "internal"])
def test_what_does_not_pass_costs_its_own_image_alone(code):
    answers, _ = asked({b"3": [code]})
    assert [getattr(a, "code", None) for a in answers].count(code) == 1
    assert [a for a in answers if isinstance(a, bytes)] == [read(p) for p in PATHS if p.name != "3"]


def test_patience_ends():
    answers, _ = asked({b"1": ["busy"] * 10_000}, patience=0.05)
    assert answers[1].code == "busy"
    assert answers[2] == b"2"


def test_a_full_head_worker_is_asked_again_for_a_session():
    tries = []

    def connect():
        tries.append(1)
        if len(tries) < 4:
            raise ServiceError("full", "full")
        return "session"

    assert connected(connect) == "session"
    tries[:] = []
    with pytest.raises(ServiceError, match="full"):
        connected(connect, patience=0.0)
    for code in ("client-unknown", "quote-failed"):

        def unknown(code=code):
            tries.append(1)
            raise ServiceError(code, code)

        tries[:] = []
        with pytest.raises(ServiceError, match=code):
            connected(unknown)
        assert len(tries) == 1


def test_a_picture_that_cannot_be_read_is_told_in_its_turn():
    def some(path: Path) -> bytes:
        if path.name == "4":
            raise PictureError("bad-image", "no picture")
        return read(path)

    with Asking(lambda: Fake({})) as every:
        found = list(every.all(PATHS, some, 3))
    assert [str(p) for p, _ in found] == [str(p) for p in PATHS]
    assert isinstance(found[4][1], PictureError)
