"""Clients that may connect and behave badly: deaf, flooding, leaving, greedy, of odd pictures."""

from __future__ import annotations

import contextlib
import io
import random
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from partopt.enclave_runner.inside import computing, rehearsal
from partopt.enclave_runner.inside.decoding import decoded
from partopt.enclave_runner.inside.fair import FairQueue
from partopt.enclave_runner.inside.outgoing import Outgoing, Owed
from partopt.enclave_runner.program.parts import Limits
from partopt.enclave_runner.program.sealing import new_key
from partopt.enclave_runner.wire import sealed
from partopt.enclave_runner.wire.messages import decode, encode
from partopt.enclave_runner.wire.sealed import Sealer
from partopt.enclave_runner.wire.session import Channel
from partopt.errors import FrameError, ServiceError
from partopt.images.dead_leaves import dead_leaves
from partopt.pixels import read
from partopt.preprocessing import Preprocessing

from .conftest import QUICK, Echoing, ask, closed, shaken, until

# ---- nonces


class Recorder:
    """AES-GCM that keeps what it encrypted under which key and nonce."""

    used: ClassVar[list[tuple[bytes, bytes]]] = []

    def __init__(self, key: bytes) -> None:
        self._key = key

    def encrypt(self, nonce, message, _) -> bytes:
        Recorder.used.append((self._key, bytes(nonce)))
        return bytes(message) + bytes(16)

    def decrypt(self, nonce, body, _) -> bytes:
        return bytes(body)[:-16]


class Faulty:
    """A socket whose sends fail, block or are cut short, as a host pleases."""

    def __init__(self, source: random.Random) -> None:
        self.source, self.blocked = source, 0

    def send(self, data, flags=0) -> int:
        what = self.source.random()
        if what < 0.1:
            raise self.source.choice(
                [TimeoutError(), BrokenPipeError(), ConnectionResetError(), OSError(105, "no room")]
            )
        if what < 0.4:
            raise BlockingIOError
        return self.source.randint(1, len(data))

    def setblocking(self, _) -> None:
        pass

    def shutdown(self, _) -> None:
        pass


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(sealed, "AESGCM", Recorder)
    Recorder.used = []
    return Recorder


@pytest.mark.parametrize("seed", range(300))
def test_no_nonce_is_used_twice_whatever_fails(seed, recorder, monkeypatch):
    """Over any schedule of failed, blocked and cut-off sends, and of messages that are too long."""
    source = random.Random(seed)

    def waited(sock, event, seconds) -> None:
        if source.random() < 0.2:
            raise TimeoutError

    monkeypatch.setattr("partopt.enclave_runner.wire.session._wait", waited)
    channel = Channel(Faulty(source), b"k" * 32, b"r" * 32, 1000)
    failed = False
    for _ in range(60):
        size = source.choice([0, 1, 100, 1000, 1001])
        before = len(recorder.used)
        try:
            channel.send(bytes(size))
            assert not failed, "a channel whose send failed is over"
        except FrameError:
            assert len(recorder.used) == before
        except OSError:
            assert not failed or len(recorder.used) == before, "nothing is encrypted any more"
            failed = True
    assert len(set(recorder.used)) == len(recorder.used)


@pytest.mark.parametrize("seed", range(100))
def test_nor_by_answers_from_several_threads(seed, recorder):
    source = random.Random(seed)
    sealer = Sealer(b"k" * 32, 1000)
    out = Outgoing(Faulty(source), Owed(1 << 30), lambda: None)

    def answer() -> None:
        for _ in range(20):
            with contextlib.suppress(ConnectionError, FrameError):
                out.put(bytes(source.choice([1, 500, 1001])), sealer)
            out.go_on()

    threads = [threading.Thread(target=answer) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(recorder.used)) == len(recorder.used) > 0
    if out.over:
        count = len(recorder.used)
        out.put(b"more", sealer)
        assert len(recorder.used) == count


def test_the_two_directions_have_keys_of_their_own_and_so_has_each_session(recorder):
    for _ in range(3):
        echo = Echoing()
        with contextlib.suppress(OSError, FrameError):
            sock, channel = shaken(echo.address)
            channel.send(b"x")
            until(lambda: len(recorder.used) % 2 == 0, 0.2)
            sock.close()
    assert len({key for key, _ in recorder.used}) == len(recorder.used) >= 3


def test_a_failed_send_ends_the_receiving_too():
    a, b = socket.socketpair()
    with a, b:
        channel = Channel(a, b"k" * 32, b"r" * 32, 1 << 24)
        b.shutdown(socket.SHUT_RD)
        with pytest.raises(OSError, match=r"pipe|reset"):
            channel.send(bytes(1 << 20))
        with pytest.raises(ConnectionError):
            channel.receive(5)


def test_a_time_limit_of_one_direction_is_not_the_others():
    """A receive that times out again and again while a large message is taken slowly."""
    a, b = socket.socketpair()
    with a, b:
        sender = Channel(a, b"k" * 32, b"r" * 32, 1 << 24)
        taker = Channel(b, b"r" * 32, b"k" * 32, 1 << 24)
        sent = threading.Thread(target=lambda: sender.send(bytes(4 << 20)))
        sent.start()
        for _ in range(10):
            with pytest.raises(TimeoutError):
                sender.receive(0.01)
        assert taker.receive(5) == bytes(4 << 20)
        sent.join()
        taker.send(b"still in step")
        assert sender.receive(5) == b"still in step"


# ---- not reading


def test_a_client_that_does_not_read_stops_nobody():
    echo = Echoing(owed=4 << 20)
    deaf, channel = shaken(echo.address)
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock, other = shaken(echo.address)
    slowest = 0.0
    for i in range(1, 120):
        with contextlib.suppress(OSError):
            channel.send(encode({"do": "any", "id": i, "bytes": 200_000}))
        begun = time.monotonic()
        assert ask(other, "any", i)["id"] == i
        slowest = max(slowest, time.monotonic() - begun)
    assert slowest < 1
    assert until(lambda: echo.sessions() == 1), "it is given up"
    assert "late" in echo.service.refusals
    assert sum(echo.listening._owed._bytes.values()) == 0
    for each in (deaf, sock):
        each.close()


def test_the_one_that_is_owed_most_is_given_up_and_not_the_one_that_is_answered():
    owed, ended = Owed(10_000), []
    socks = [socket.socketpair() for _ in range(2)]
    for pair in socks:
        pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    outs = [Outgoing(p[0], owed, lambda i=i: ended.append(i)) for i, p in enumerate(socks)]
    while owed._bytes.get(outs[0], 0) < 6000:
        outs[0].put(bytes(1000), None)
    for _ in range(1000):
        if outs[0].over:
            break
        assert not outs[1].over
        outs[1].put(bytes(100), None)
    assert ended.count(0)
    assert owed._bytes[outs[1]] < 6000
    outs[0].end()
    assert set(owed._bytes) == {outs[1]}
    for pair in socks:
        for sock in pair:
            sock.close()


def test_an_answer_that_no_message_holds_is_an_error_and_not_silence():
    echo = Echoing()
    sock, channel = shaken(echo.address)
    said = ask(channel, "any", bytes=(1 << 20) + 1)
    assert (said["id"], said["error"]) == (1, "oversized")
    assert ask(channel, "any", 2)["id"] == 2
    sock.close()


# ---- taking more than a share


@dataclass(eq=False)
class Asker:
    owner: str


@dataclass(eq=False)
class Item:
    session: Asker
    size: int = 1
    cost: float = 0.01
    gone: bool = field(default=False)


def test_a_newcomer_finds_room_in_a_full_queue():
    queue: FairQueue[Item] = FairQueue(4, 1 << 30)
    greedy, other = Asker("a"), Asker("b")
    mine = [Item(greedy) for _ in range(6)]
    assert [queue.put(item) for item in mine] == [[], [], [], [], [mine[4]], [mine[5]]]
    late = Item(other)
    assert queue.put(late) == [mine[3]]
    taken = [queue.take(0) for _ in range(4)]
    assert late in taken[:2]
    assert queue.take(0) is None


def test_bytes_that_wait_are_bounded_and_the_largest_share_goes():
    queue: FairQueue[Item] = FairQueue(100, 1000)
    large, small = Asker("a"), Asker("a")
    first = Item(large, 900)
    assert queue.put(first) == []
    own = Item(small, 50)
    assert queue.put(own) == []
    assert queue.put(Item(small, 100)) == [first]
    huge = Item(small, 2000)
    assert huge in queue.put(huge)


def test_who_leaves_leaves_nothing():
    queue: FairQueue[Item] = FairQueue(10, 100)
    one, two = Asker("a"), Asker("a")
    items = [Item(one), Item(two), Item(one)]
    for item in items:
        queue.put(item)
    assert queue.leave(one) == [items[0], items[2]]
    assert queue.leave(one) == []
    assert queue.take(0) is items[1]
    assert queue.leave(two) == []
    assert not queue._owners


@pytest.mark.parametrize("seed", range(20))
def test_computing_time_is_shared(seed):
    """Owners and sessions that always want more get equal time, whatever their requests cost."""
    source = random.Random(seed)
    queue: FairQueue[Item] = FairQueue(1000, 1 << 30)
    askers = [Asker(o) for o in "aaab"]
    costs = {a: source.choice([0.001, 0.01, 0.1]) for a in askers}
    used = dict.fromkeys(askers, 0.0)
    for asker in askers:
        for _ in range(2):
            queue.put(Item(asker, cost=costs[asker]))
    while sum(used.values()) < 60:
        item = queue.take(0)
        queue.charge(item.session, item.cost)
        used[item.session] += item.cost
        queue.put(Item(item.session, cost=item.cost))
    assert used[askers[3]] == pytest.approx(30, rel=0.1)
    for asker in askers[:3]:
        assert used[asker] == pytest.approx(10, rel=0.15)


def test_a_flood_starves_nobody_and_every_answer_is_its_own(worker, made, pictures):
    """One sends without waiting; the other's requests are all answered."""
    stop = threading.Event()

    def flood() -> None:
        with worker.client() as client:
            numbers = []
            while not stop.is_set():
                numbers.append(client.submit(pictures[0]))
                if len(numbers) > 200:
                    for number in numbers:
                        with contextlib.suppress(ServiceError):
                            client.collect(number)
                    numbers.clear()

    threads = [threading.Thread(target=flood) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        with worker.client() as client:
            for i in range(20):
                picture = pictures[i % len(pictures)]
                assert torch.equal(client.classify(picture).tensors[0], made.logits(picture))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_requests_of_who_left_are_dropped(start_inside, made, photo):
    """No tail: what is under way waits for it, the rest waits for that."""
    worker = start_inside(with_tail=False, queue=16)
    for _ in range(2):
        worker.worker._tails.wait_for_a_slot()
    client = worker.client()
    for _ in range(10):
        client.submit(photo)
    assert until(lambda: worker.worker._waiting._count >= 9)
    client.close()
    assert until(lambda: worker.worker._waiting.is_empty)
    worker.worker._tails.give_back()
    worker.worker._tails.give_back()
    assert until(lambda: not worker.listening.members)


def test_a_request_that_waited_for_too_long_is_told_so(start_inside, photo):
    worker = start_inside(with_tail=False, timeout=0.2)
    for _ in range(2):
        worker.worker._tails.wait_for_a_slot()
    with worker.client() as client:
        numbers = [client.submit(photo) for _ in range(2)]
        time.sleep(0.4)
        worker.worker._tails.give_back()
        for number in numbers:
            with pytest.raises(ServiceError) as caught:
                client.collect(number)
            assert caught.value.code == "late"
        assert "waited" in str(caught.value) or "slow" in str(caught.value)
    worker.worker._tails.give_back()


# ---- keys, and weights that are not open


def test_a_wrong_key_is_wrong_before_and_after(start_worker, made, photo):
    worker = start_worker(unlocked=False)
    with worker.client() as client:
        for _ in range(2):
            for wrong in (new_key(), b"short", b""):
                with pytest.raises(ServiceError) as caught:
                    client.unlock(wrong)
                assert caught.value.code == "wrong-key"
            client.unlock(made.key)
        assert torch.equal(client.classify(photo).tensors[0], made.logits(photo))


def test_who_tries_keys_is_hung_up_on(worker):
    with worker.client() as client, pytest.raises(ServiceError) as caught:
        for _ in range(100):
            with contextlib.suppress(ServiceError):
                client.unlock(new_key())
            client._state(client._ask("describe"))
    assert caught.value.code == "head-lost"


@pytest.mark.parametrize(("opened", "code"), [(False, "locked"), (True, "starting")])
def test_before_the_weights_are_open(start_inside, made, photo, opened, code):
    """Small pictures and large ones get an answer, and the session goes on."""
    worker = start_inside(unlocked=False, opened=opened)
    with worker.client() as client:
        for picture in (photo, bytes(1 << 20), photo):
            with pytest.raises(ServiceError) as caught:
                client.classify(picture)
            assert caught.value.code == code
        client.unlock(made.key)
        with pytest.raises(ServiceError) as caught:
            client.classify(bytes(1 << 20))
        assert caught.value.code == "bad-image"


def test_a_large_frame_before_the_weights_are_open_ends_the_session(start_worker):
    worker = start_worker(unlocked=False)
    sock, channel = worker.raw()
    with contextlib.suppress(OSError):
        channel.send(encode({"do": "classify", "id": 1}, bytes(1 << 19)))
    assert closed(sock)
    assert until(lambda: "oversized" in worker.lines.codes())
    sock.close()


# ---- what is sent


@pytest.mark.parametrize(
    "head", [{}, {"id": 0}, {"id": True}, {"id": 1.5}, {"id": -1}, {"id": 1 << 60}, {"id": "1"}]
)
def test_a_message_without_a_usable_id_ends_its_session_alone(worker, made, photo, head):
    sock, channel = worker.raw()
    with worker.client() as client:
        channel.send(encode({"do": "classify", **head}, photo))
        assert closed(sock)
        assert torch.equal(client.classify(photo).tensors[0], made.logits(photo))
    sock.close()


def test_one_bad_picture_of_a_batch_costs_the_others_nothing(start_worker, made, pictures):
    worker = start_worker(batch=4, queue=64)
    with worker.client() as client:
        sent = [p for picture in pictures for p in (picture, picture[: len(picture) // 2])]
        numbers = [client.submit(p) for p in sent]
        for i, number in enumerate(numbers):
            if i % 2:
                with pytest.raises(ServiceError) as caught:
                    client.collect(number)
                assert caught.value.code == "bad-image"
            else:
                torch.testing.assert_close(client.collect(number).tensors[0], made.logits(sent[i]))


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ImportError("x", name="PIL.MpoImagePlugin"), "internal", "import PIL.MpoImagePlugin"),
        (PermissionError(13, "x", "/lib/of.so"), "internal", "Permission denied: /lib/of.so"),
        (FileNotFoundError(2, "x", "/lib/of.so"), "internal", "No such file or directory: /lib"),
        (RuntimeError("tensor([1, 2])"), "internal", ""),
        (MemoryError(), "too-large", None),
        (ServiceError("bad-image", "x"), "bad-image", None),
    ],
)
def test_what_the_worker_lacks_is_not_blamed_on_the_picture(
    inside, made, photo, error, code, told, monkeypatch
):
    def lacking(*_):
        raise error

    with inside.client() as client:
        with monkeypatch.context() as patch:
            patch.setattr(computing, "decoded", lacking)
            with pytest.raises(ServiceError) as caught:
                client.classify(photo)
            assert caught.value.code == code
        if code == "internal":
            ours = type(error).__name__
            deadline = time.monotonic() + 10  # a client is told first
            while ours not in [e.get("kind") for e in list(inside.lines.said)]:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            text = [e["text"] for e in inside.lines.said if e.get("kind") == ours][-1]
            assert told in text
            assert bool(text) == bool(told), "what a library says of an image stays inside"
        assert torch.equal(client.classify(photo).tensors[0], made.logits(photo))


HOW = Preprocessing(24, 28, (0.5,) * 3, (0.25,) * 3)


def formats() -> dict[str, bytes]:
    """Pictures as cameras, phones and programs write them."""
    plain = Image.fromarray(dead_leaves(1, 40, seed=5)[0].transpose(1, 2, 0)).resize((53, 41))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0132] = 6, "Maker", "2024:01:01 00:00:00"
    exif.get_ifd(0x8769)[0x9003] = "2024:01:01 00:00:00"
    grey = np.asarray(plain.convert("L"))
    made: dict[str, tuple[Image.Image, str, dict]] = {
        "jpeg": (plain, "JPEG", {}),
        "jpeg with exif": (plain, "JPEG", {"exif": exif}),
        "jpeg with a profile": (plain, "JPEG", {"icc_profile": bytes(3000)}),
        "jpeg with a comment": (plain, "JPEG", {"comment": b"\xff\xda" * 99}),
        "progressive jpeg": (plain, "JPEG", {"progressive": True, "quality": 80}),
        "jpeg, 4:4:4": (plain, "JPEG", {"subsampling": 0}),
        "grey jpeg": (plain.convert("L"), "JPEG", {"exif": exif}),
        "cmyk jpeg": (plain.convert("CMYK"), "JPEG", {"exif": exif}),
        "progressive cmyk jpeg": (plain.convert("CMYK"), "JPEG", {"progressive": True}),
        "mpo": (plain, "MPO", {"save_all": True, "append_images": [plain], "exif": exif}),
        "png": (plain, "PNG", {"exif": exif}),
        "palette png": (plain.convert("P"), "PNG", {}),
        "palette png with a hole": (plain.convert("P"), "PNG", {"transparency": 3}),
        "grey png": (plain.convert("L"), "PNG", {}),
        "16-bit png": (Image.fromarray(grey.astype(np.uint16) * 257), "PNG", {}),
        "1-bit png": (plain.convert("1"), "PNG", {}),
        "layered png": (plain.convert("RGBA"), "PNG", {}),
        "grey layered png": (plain.convert("LA"), "PNG", {}),
        "webp": (plain, "WEBP", {"exif": exif.tobytes()}),
        "lossless webp": (plain.convert("RGBA"), "WEBP", {"lossless": True}),
        "animated webp": (plain, "WEBP", {"save_all": True, "append_images": [plain]}),
        "bmp": (plain, "BMP", {}),
        "palette bmp": (plain.convert("P"), "BMP", {}),
    }
    found = {}
    for name, (image, kind, how) in made.items():
        file = io.BytesIO()
        image.save(file, kind, **how)
        found[name] = file.getvalue()
    return found


@pytest.mark.parametrize("name", formats())
def test_every_kind_of_picture_is_what_attacks_were_given(name):
    data = formats()[name]
    wanted = torch.from_numpy(HOW.fit(read(io.BytesIO(data)))).float()[None] / 255
    assert torch.equal(torch.from_numpy(decoded(data, HOW, Limits())), HOW.normalise(wanted))


RUN = """
import sys
from partopt.enclave_runner.inside import head, rehearsal
from partopt.enclave_runner.inside.decoding import decoded
from partopt.enclave_runner.program.parts import Limits
from partopt.preprocessing import Preprocessing
how = Preprocessing(24, 28)
for picture in rehearsal._pictures(24):
    decoded(picture, how, Limits())
opened, before = [], set(sys.modules)
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
for name, picture in eval(sys.stdin.read()).items():
    decoded(picture, how, Limits())
    print(name, sorted(set(sys.modules) - before), opened)
"""


def test_the_rehearsal_opens_all_that_they_need():
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=repr(formats()),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [f"{name} [] []" for name in formats()]
    assert sum(1 for _ in rehearsal._pictures(16)) >= 20


def test_warnings_about_a_picture_are_not_printed(start_inside, capfd, photo):
    """The head worker is silent; in this process, at least nothing of the picture is said."""
    worker = start_inside()
    with worker.client() as client, pytest.raises(ServiceError):
        client.classify(photo[: len(photo) // 2])
    assert capfd.readouterr() == ("", "")


def test_answers_that_lie_about_their_size_or_times_are_refused(worker, photo):
    """A head worker of somebody else, behind a session that holds."""
    with worker.client() as client:
        number = client.submit(photo)
        head, body, _ = client._came_for(number)
        for bad, what in (
            ((head, body + b"\0"), "size"),
            (({**head, "times": [1]}, body), "times"),
            (({**head, "times": {"x": "\x1b[31m"}}, body), "times"),
        ):
            with pytest.raises(ServiceError, match=what) as caught:
                client._answer(*bad, 0.1)
            assert caught.value.code == "malformed"


def test_sessions_that_send_too_fast_are_served_in_turn():
    """A flood of small messages delays another's by one turn, not by all of them."""
    echo = Echoing(bounds=replace(QUICK, stalled=60))
    stop = threading.Event()
    sock, flooding = shaken(echo.address)

    def flood() -> None:
        i = 0
        with contextlib.suppress(OSError, FrameError):
            while not stop.is_set():
                i += 1
                flooding.send(encode({"do": "any", "id": i}))
                with contextlib.suppress(TimeoutError):
                    while True:
                        decode(flooding.receive(0))

    thread = threading.Thread(target=flood)
    thread.start()
    other_sock, other = shaken(echo.address)
    try:
        for i in range(1, 30):
            begun = time.monotonic()
            assert ask(other, "any", i)["id"] == i
            assert time.monotonic() - begun < 2
    finally:
        stop.set()
        thread.join()
        for each in (sock, other_sock):
            each.close()


def test_a_fault_of_ours_ends_the_session_that_met_it_alone(monkeypatch):
    echo = Echoing()
    sock, channel = shaken(echo.address)
    other_sock, other = shaken(echo.address)
    plain = echo.service.handle

    def broken(session, message) -> None:
        if b"break" in message:
            raise KeyError("a fault")
        plain(session, message)

    monkeypatch.setattr(echo.service, "handle", broken)
    channel.send(encode({"do": "break", "id": 1}))
    assert closed(sock)
    assert ask(other, "any")["id"] == 1
    assert [type(e) for e in echo.service.troubles] == [KeyError]
    for each in (sock, other_sock):
        each.close()


def test_memory_is_given_back_after_the_last_has_left(monkeypatch):
    """Not only when the next one comes: the worker rests once there is nothing left to be done."""
    echo, alone = Echoing(), []
    monkeypatch.setattr(
        echo.service, "rest", lambda: alone.append(not echo.listening._sessions) or True
    )
    sock, channel = shaken(echo.address)
    ask(channel, "any")
    assert True not in alone
    sock.close()
    assert until(lambda: True in alone, 3)
    assert until(lambda: echo.listening._resting, 3)
