import random
import resource
import socket
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from partopt.enclave_runner.program.tensors import to_wire
from partopt.enclave_runner.tail import send as answer_to
from partopt.enclave_runner.wire.areas import allocated
from partopt.enclave_runner.wire.ends import open_end
from partopt.enclave_runner.wire.filedrop import drop_files
from partopt.enclave_runner.wire.frames import (
    ANSWER,
    BOUNDARY,
    FAILURE,
    HEADER_BYTES,
    Expected,
    Header,
    check_whole,
    unpack,
)
from partopt.enclave_runner.wire.layouts import Layout, room
from partopt.enclave_runner.wire.messages import listen
from partopt.enclave_runner.wire.shm import area_bytes
from partopt.enclave_runner.wire.start import Start
from partopt.enclave_runner.wire.transport import NAMES, Exchange
from partopt.errors import FrameError, ServiceError

EXCHANGE = Exchange(
    boundary=(Layout("a", (1, 4, 6), "float32"), Layout("b", (2, 3), "int64")),
    answer=(Layout("answer", (1, 10), "float32"),),
    batch=3,
    slots=2,
)

START = Start(
    transport="tcp",
    area="",
    slots=2,
    batch=3,
    threads=1,
    queue=1,
    host="",
    port=0,
    token="00" * 16,
)


def pair(transport, folder):
    area = str(folder)
    if transport == "shm":
        area = str(folder / "area")
        with open(area, "wb") as file:
            file.truncate(area_bytes(EXCHANGE))
    start = replace(START, transport=transport, area=area)
    with listen() as door:
        theirs = socket.create_connection(door.getsockname())
        ours, _ = door.accept()
    return open_end(ours, EXCHANGE, start, True), open_end(theirs, EXCHANGE, start, False)


def boundary(batch):
    return to_wire([torch.rand(batch, 4, 6), torch.randint(-9, 9, (2 * batch, 3))])


@pytest.fixture(params=NAMES)
def ends(request, tmp_path):
    head, tail = pair(request.param, tmp_path)
    yield head, tail
    head.close()
    tail.close()


def test_tensors_cross_unchanged_both_ways(ends):
    head, tail = ends
    for number, batch in enumerate([1, 3, 2, 1, 1], 1):
        sent = boundary(batch)
        head.send(BOUNDARY, 40 + number, sent, batch=batch)
        header, got = tail.receive(5)
        assert (header.request, header.batch) == (40 + number, batch)
        assert all(np.array_equal(a, b) for a, b in zip(sent, got, strict=True))
        answer = torch.rand(batch, 10).numpy()
        tail.send(ANSWER, header.request, [answer], batch=batch, compute_ns=77)
        header, (got,) = head.receive(5)
        assert header.compute_ns == 77
        assert np.array_equal(got, answer)


def test_two_frames_under_way_and_a_failure(ends):
    head, tail = ends
    for request in (1, 2):
        head.send(BOUNDARY, request, boundary(1), batch=1)
    assert tail.receive(5)[0].request == 1
    tail.send(FAILURE, 1, [], batch=1)
    assert tail.receive(5)[0].request == 2
    tail.send(ANSWER, 2, [np.zeros((1, 10), np.float32)], batch=1)
    assert (head.receive(5)[0].kind, head.receive(5)[0].kind) == (FAILURE, ANSWER)


def test_nothing_comes_and_then_the_other_side_goes(ends):
    head, tail = ends
    assert head.receive(0.05) is None
    threading.Timer(0.1, tail.close).start()
    with pytest.raises(ServiceError, match="tail worker is gone"):
        head.receive(5)
    with pytest.raises(ServiceError, match="gone"):
        for _ in range(3):
            head.send(BOUNDARY, 1, boundary(1), batch=1)


def test_wrong_shapes_are_not_sent(ends):
    with pytest.raises(FrameError, match="shape"):
        ends[0].send(BOUNDARY, 1, boundary(2), batch=1)


def test_an_answer_is_private_to_the_head(tmp_path):
    head, tail = pair("shm", tmp_path)
    head.send(BOUNDARY, 1, boundary(1), batch=1)
    tail.receive(5)
    tail.send(ANSWER, 1, [np.ones((1, 10), np.float32)], batch=1)
    _, (got,) = head.receive(5)
    for start in range(0, area_bytes(EXCHANGE), 4096):
        tail._memory[start : start + 16] = b"\xff" * 16
    assert np.array_equal(got, np.ones((1, 10), np.float32))
    head.close()
    tail.close()


def answer(**changes) -> Header:
    body = bytes(room(EXCHANGE.answer, 1))
    import zlib

    fields = {
        "kind": ANSWER,
        "batch": 1,
        "instance": int(START.instance, 16),
        "number": 1,
        "request": 1,
        "compute_ns": 0,
        "length": len(body),
        "crc": zlib.crc32(body),
    }
    return Header(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"instance": 7}, "forged"),
        ({"number": 0}, "replayed"),
        ({"number": 3}, "unexpected"),
        ({"kind": BOUNDARY}, "unexpected"),
        ({"batch": 0}, "oversized"),
        ({"batch": 4}, "oversized"),
        ({"length": 1 << 30}, "oversized"),
        ({"length": 3}, "truncated"),
        ({"crc": 5}, "torn"),
    ],
)
def test_each_bad_answer_has_its_code(tmp_path, changes, code):
    for transport in NAMES:
        folder = tmp_path / transport
        folder.mkdir()
        head, tail = pair(transport, folder)
        raw = answer(**changes).pack() + bytes(room(EXCHANGE.answer, 1))
        place(transport, tail, folder, raw)
        with pytest.raises(FrameError) as caught:
            head.receive(5)
        assert caught.value.code == code, transport
        head.close()
        tail.close()


def place(transport, tail, folder, raw: bytes) -> None:
    """Put the bytes of an answer where the head looks for its first one, and ring."""
    if transport == "tcp":
        tail.door.setblocking(True)
        tail.door.sendall(raw)
        return
    if transport == "shm":
        start = tail._slot(False, 1)
        raw = raw[: area_bytes(EXCHANGE) - start]
        tail._bytes[start : start + len(raw)] = raw
        tail._words[16] = 1
    else:
        (folder / "answer-0").write_bytes(raw)
    tail.door.send(b"!")


def test_truncated_and_alien_frames(tmp_path):
    with pytest.raises(FrameError, match="not 64"):
        unpack(b"POF1")
    with pytest.raises(FrameError, match="does not begin"):
        unpack(bytes(HEADER_BYTES))
    with pytest.raises(FrameError, match="3 bytes, not"):
        check_whole(answer(), b"abc")
    head, tail = pair("tcp", tmp_path)
    tail.door.setblocking(True)
    tail.door.sendall(answer().pack()[:20])
    tail.close()
    with pytest.raises(FrameError) as caught:
        head.receive(5)
    assert caught.value.code == "truncated"
    head.close()


def test_ten_thousand_fuzzed_frames_crash_nothing_and_leak_nothing():
    source = random.Random(0)
    good = answer().pack()
    wanted = EXCHANGE.rooms(EXCHANGE.answer)
    codes = set()

    def one() -> None:
        raw = bytearray(good)
        for _ in range(source.randint(1, 4)):
            raw[source.randrange(48)] = source.randrange(256)
        if source.random() < 0.1:
            raw = raw[: source.randrange(HEADER_BYTES)]
        try:
            header = Expected((ANSWER, FAILURE), wanted, int(START.instance, 16)).check(
                unpack(bytes(raw))
            )
            check_whole(header, bytes(source.randrange(header.length + 1)))
        except FrameError as error:
            codes.add(error.code)

    for _ in range(1000):
        one()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(10_000):
        one()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2048  # KiB
    assert codes >= {"malformed", "unexpected", "oversized", "truncated", "torn"}


def test_a_full_disk_is_told_from_a_dead_peer(tmp_path):
    """Nothing was announced, so that the next frame has the number that is expected."""
    for name, size in drop_files(EXCHANGE).items():
        allocated(tmp_path / name, size)
    head, tail = pair("file", tmp_path)
    kept = (tmp_path / "boundary-0").rename(tmp_path / "kept")
    (tmp_path / "boundary-0").symlink_to("/dev/full")
    with pytest.raises(ServiceError, match=r"cannot be written to .*No space left") as caught:
        head.send(BOUNDARY, 1, boundary(1), batch=1)
    assert caught.value.code == "no-room"
    (tmp_path / "boundary-0").unlink()
    kept.rename(tmp_path / "boundary-0")
    head.send(BOUNDARY, 2, boundary(1), batch=1)
    header, _ = tail.receive(5)
    (tmp_path / "answer-0").rename(kept)
    (tmp_path / "answer-0").symlink_to("/dev/full")
    with pytest.raises(ServiceError) as caught:
        tail.send(ANSWER, 2, [np.ones((1, 10), np.float32)], batch=1)
    assert caught.value.code == "no-room"
    (tmp_path / "answer-0").unlink()
    answer_to(tail, ANSWER, header, [np.ones((1, 10), np.float32)], 0)
    assert head.receive(5)[0].kind == ANSWER
    head.close()
    tail.close()


def test_a_tail_whose_answer_finds_no_room_says_so_and_lives():
    sent = []

    class Full:
        def send(self, kind, *rest, **more):
            sent.append(kind)
            if kind == ANSWER:
                raise ServiceError("no-room", "full")

    answer_to(Full(), ANSWER, answer(), [np.ones((1, 10), np.float32)], 0)
    assert sent == [ANSWER, FAILURE]


def test_a_slow_reader_tears_no_frame():
    """The sending side waits as long as it takes, whatever its receiving thread is doing."""
    big = Exchange(
        boundary=(Layout("a", (1, 1 << 22), "float32"),), answer=EXCHANGE.answer, batch=1, slots=2
    )
    with listen() as door:
        theirs = socket.create_connection(door.getsockname())
        ours, _ = door.accept()
    head, tail = open_end(ours, big, START, True), open_end(theirs, big, START, False)
    over = threading.Event()

    def take() -> None:
        while not over.is_set():
            head.receive(0.05)

    taking = threading.Thread(target=take)
    taking.start()
    got = []
    late = threading.Timer(0.6, lambda: got.append(tail.receive(20)))
    late.start()
    sent = np.arange(1 << 22, dtype=np.float32)[None]
    head.send(BOUNDARY, 1, [sent], batch=1)
    late.join()
    over.set()
    taking.join()
    assert np.array_equal(got[0][1][0], sent)
    head.close()
    tail.close()
