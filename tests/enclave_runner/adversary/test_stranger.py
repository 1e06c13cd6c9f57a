"""Anyone who can connect: silence, halves of things, storms and lies keep nobody else out."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import dataclass, replace

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from PIL import Image

from partopt import cli
from partopt.enclave_runner.attestation import (
    ACCEPTABLE,
    CLAIMED,
    LABELS,
    RESULTS,
    claimed,
    verified_by_dcap,
    verifier,
)
from partopt.enclave_runner.client import Client
from partopt.enclave_runner.client_keys import make, read_clients, read_secret
from partopt.enclave_runner.inside import quote as quoting
from partopt.enclave_runner.inside.decoding import decoded
from partopt.enclave_runner.inside.head import HeadWorker
from partopt.enclave_runner.inside.places import gives_way, oldest_of_greediest, owner_of
from partopt.enclave_runner.inside.scans import effort_of
from partopt.enclave_runner.inside.tails import knocking
from partopt.enclave_runner.orchestrator import ServeOptions
from partopt.enclave_runner.program.parts import Limits, Part
from partopt.enclave_runner.wire.accepted import (
    BYTES_PER_PIXEL,
    MAX_CHUNKS,
    MAX_NOTES,
    MAX_SCANS,
    REFUSALS,
)
from partopt.enclave_runner.wire.addresses import is_loopback, literal
from partopt.enclave_runner.wire.messages import encode, listen
from partopt.enclave_runner.wire.proofs import proof, proven, public_of
from partopt.enclave_runner.wire.session import Hello
from partopt.errors import AttestationError, PictureError, ServiceError, SessionError, UsageError
from partopt.preprocessing import Preprocessing

from .conftest import QUICK, Echoing, ask, closed, fake_head, many, shaken, until

HELLO = (
    b"POC1"
    + X25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()
    + bytes(32)
)
FEW = replace(QUICK, clients=4, pending=6)


@pytest.mark.parametrize(
    "said",
    [b"", b"P", HELLO[:30], HELLO, HELLO + struct.pack("<IQ", 60_000, 0)],
    ids=["nothing", "a byte", "half a handshake", "a handshake", "a header"],
)
def test_the_silent_keep_nobody_out(said):
    """None of them goes away by itself: three times as many as there are places."""
    echo = Echoing(bounds=replace(FEW, handshake=60, frame=60))
    with many(18, echo.address, said):
        time.sleep(FEW.spare + 0.1)
        begun = time.monotonic()
        for _ in range(5):
            sock, channel = shaken(echo.address)
            assert ask(channel, "any") == {"id": 1, "times": {}}
            sock.close()
        assert time.monotonic() - begun < 3
        assert echo.sessions() <= FEW.clients + FEW.pending


@pytest.mark.parametrize("said", [b"", HELLO[:67]], ids=["nothing", "most of it"])
def test_a_handshake_has_a_deadline(said):
    echo = Echoing()
    with many(3, echo.address, said) as socks:
        assert all(closed(sock) for sock in socks)
    assert until(lambda: echo.sessions() == 0)
    assert set(echo.service.refusals) == {"late"}


def test_a_frame_has_a_deadline_however_busily_it_dribbles():
    echo = Echoing()
    sock, channel = shaken(echo.address)
    frame = channel._out.seal(bytes(100))
    begun = time.monotonic()
    with pytest.raises(OSError, match=r"pipe|reset"):
        for byte in frame * 2:
            sock.sendall(bytes([byte]))
            time.sleep(0.02)
    assert time.monotonic() - begun < QUICK.frame + 1.5
    assert echo.service.refusals == ["late"]
    sock.close()


def test_an_idle_session_ends_and_says_so():
    echo = Echoing(bounds=replace(QUICK, idle=0.3))
    client = Client(echo.address, [], Limits(), lambda hello: None, 5)
    assert until(lambda: client._broken is not None)
    with pytest.raises(ServiceError) as caught:
        client.submit(b"")
    assert caught.value.code == "idle"
    client.close()


def test_a_header_that_announces_much_takes_nothing():
    echo = Echoing(bounds=replace(QUICK, frame=60))
    socks = [shaken(echo.address)[0] for _ in range(8)]
    for sock in socks:
        sock.sendall(struct.pack("<IQ", 1 << 16, 0))
    assert until(lambda: all(s.came for s in echo.listening.members))
    assert [len(s.came) for s in echo.listening.members] == [12] * 8
    for sock in socks:
        sock.close()


def test_unfinished_frames_of_all_clients_are_bounded():
    echo = Echoing(bounds=replace(QUICK, frame=60, incoming=1 << 20))
    socks = []
    for _ in range(6):
        sock, channel = shaken(echo.address)
        sock.setblocking(False)
        socks.append(sock)
        frame = channel._out.seal(bytes(900_000))[:-1]
        at = 0
        while at < len(frame):
            try:
                at += sock.send(frame[at:])
            except BlockingIOError:
                time.sleep(0.005)
            except OSError:
                break
        held = [len(s.came) for s in list(echo.listening._sessions.values())]
        assert sum(held) <= (1 << 20) + (1 << 16)
    assert "late" in echo.service.refusals
    for sock in socks:
        sock.close()


def test_who_finds_no_place_is_told_so_and_finds_one_later():
    """Two places, both with requests under way; no "check host and port"."""
    echo = Echoing(bounds=replace(QUICK, clients=2))
    busy = [shaken(echo.address) for _ in range(2)]
    for _, channel in busy:
        channel.send(encode({"do": "stay", "id": 1}))
    assert until(lambda: all(s.under_way for s in echo.listening.members))
    for _ in range(3):
        with pytest.raises(ServiceError) as caught:
            shaken(echo.address)
        assert caught.value.code == "full"
        assert "full" in str(caught.value)
    busy[0][0].close()
    assert until(lambda: len(echo.listening.members) == 1)
    sock, channel = shaken(echo.address)
    assert ask(channel, "any")["id"] == 1
    for each in (busy[1][0], sock):
        each.close()


@dataclass(eq=False)
class Seat:
    owner: str
    since: float = 0.0
    answered: int = 0
    under_way: int = 0


def test_places_are_shared_by_address():
    now = 100.0
    greedy = [Seat("a", since=float(i), under_way=1) for i in range(5)]
    assert gives_way(greedy, "b", now, 1.0) is greedy[-1], "busy, but one owner's"
    assert gives_way(greedy, "a", now, 1.0) is None
    modest = Seat("b", since=0.0)
    assert gives_way([*greedy, modest], "c", now, 1.0) is greedy[-1] or modest
    silent = [Seat("a", since=float(i)) for i in range(5)]
    assert gives_way([*silent, modest], "c", now, 1.0).owner == "a"
    answered = Seat("a", since=0.0, answered=3)
    assert gives_way([answered, *silent[1:]], "a", now, 1.0) is silent[1], "who was never answered"
    fresh = [Seat("a", since=now) for _ in range(5)]
    assert gives_way(fresh, "a", now, 1.0) is None, "nobody is silent for long enough"
    even = [Seat(o, since=0.0) for o in "abc"]
    assert gives_way(even, "d", now, 1.0).owner in "abc"
    assert gives_way([Seat("a"), Seat("b")], "a", now, 1.0).owner == "a", "not another's last"
    assert oldest_of_greediest([modest, *silent]) is silent[0]


def test_an_address_is_one_owner():
    assert owner_of("192.0.2.7") == owner_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert owner_of("2001:db8::1") == owner_of("2001:db8::ffff:1") != owner_of("2001:db8:1::1")
    assert owner_of("fe80::1%eth0") == owner_of("fe80::2%eth1")


def test_too_many_descriptors_are_no_end(monkeypatch):
    """A storm that takes all descriptors: those at the door go, and the port goes on."""
    echo = Echoing(bounds=replace(QUICK, handshake=60))
    door, left = echo.listening._door, [3]

    class Scarce:
        def accept(self):
            if left[0]:
                left[0] -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return door.accept()

    with many(2, echo.address) as waiting:
        assert until(lambda: echo.sessions() == 2)
        monkeypatch.setattr(echo.listening, "_door", Scarce())
        sock, channel = shaken(echo.address)
        assert ask(channel, "any")["id"] == 1
        assert all(closed(w) for w in waiting)
        sock.close()
    assert "full" in echo.service.refusals


def test_a_worker_that_loses_a_thread_ends(monkeypatch):
    """A head without its listening thread would be deaf, and nobody would know."""
    ends, said = [], []

    class Told:
        _control = type("C", (), {"send": staticmethod(lambda **e: said.append(e))})

    monkeypatch.setattr(os, "_exit", ends.append)
    HeadWorker._for_ever(Told(), lambda: 1 / 0)
    assert ends == [1]
    assert "ZeroDivisionError" in said[0]["error"]


def test_a_storm_of_connections_beside_a_client(worker, made, photo):
    stop = threading.Event()

    def storm() -> None:
        while not stop.is_set():
            with many(10, worker.address, HELLO if len(codes) % 2 else b"GET / HTTP/1.1\r\n\r\n"):
                pass

    codes: list[str] = []
    threads = [threading.Thread(target=storm) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        wanted = made.logits(photo)
        for _ in range(6):
            begun = time.monotonic()
            try:
                with worker.client() as client:
                    codes.append(str(bool((client.classify(photo).tensors[0] == wanted).all())))
            except ServiceError as error:
                codes.append(error.code)
            assert time.monotonic() - begun < 10
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert codes.count("True") >= 4, codes
    assert set(codes) <= {"True", *REFUSALS}


# ---- quotes


def test_quotes_are_made_one_after_the_other_for_whom_they_are(monkeypatch):
    """With simulated devices: what is read belongs to what was written last."""

    class Device:
        written = b""

        def write_bytes(self, data: bytes) -> None:
            Device.written = data

        def read_bytes(self) -> bytes:
            time.sleep(0.002)
            return Device.written

    monkeypatch.setattr(quoting, "_REPORT_DATA", Device())
    monkeypatch.setattr(quoting, "_QUOTE", Device())
    found = {}
    threads = [
        threading.Thread(
            target=lambda d: found.update({d: quoting.own_quote(d)}), args=(bytes([i]),)
        )
        for i in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(made == asked for asked, made in found.items())
    assert len(found) == 16


def test_all_of_several_clients_get_their_quote():
    def slow(data: bytes) -> bytes:
        time.sleep(0.02)
        return data

    def check(hello: Hello) -> None:
        assert hello.quote == hello.report_data

    echo = Echoing(quote=slow)
    codes: list[str] = []

    def one() -> None:
        sock, channel = shaken(echo.address, check)
        codes.append(str(ask(channel, "any")["id"]))
        sock.close()

    threads = [threading.Thread(target=one) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert codes == ["1"] * 12
    assert echo.listening._quotes._waiting._owners == {}, "nothing is kept of a quote that was made"


def test_a_storm_for_quotes_is_bounded_and_others_wait_their_turn():
    """Strangers who leave before their quote is made cost one quote at most."""
    made = []

    def slow(data: bytes) -> bytes:
        time.sleep(0.05)
        made.append(data)
        return b"q"

    echo = Echoing(quote=slow, bounds=FEW)
    with many(40, echo.address, HELLO):
        begun = time.monotonic()
        while True:
            with contextlib.suppress(ServiceError):
                sock, channel = shaken(echo.address)
                break
            time.sleep(0.05)
        assert ask(channel, "any")["id"] == 1
        assert time.monotonic() - begun < 3
        sock.close()
    assert len(made) <= 20


def test_a_quote_that_cannot_be_made_is_told_to_both_sides():
    def broken(data: bytes) -> bytes:
        raise AttestationError("this enclave cannot be quoted (no AESM)")

    echo = Echoing(quote=broken)
    with pytest.raises(ServiceError) as caught:
        shaken(echo.address)
    assert caught.value.code == "quote-failed"
    assert [str(e) for e in echo.service.troubles] == ["this enclave cannot be quoted (no AESM)"]


# ---- what a verifier's library says


class Library:
    def __init__(self, code: int, result: int, expired: int) -> None:
        self.said = code, result, expired

    def sgx_qv_verify_quote(self, quote, size, collateral, when, expired, result, *more) -> int:
        code, result._obj.value, expired._obj.value = self.said
        return code


@pytest.fixture
def library(monkeypatch):
    def says(code: int = 0, result: int = 0, expired: int = 0) -> None:
        monkeypatch.setattr("ctypes.util.find_library", lambda name: name)
        monkeypatch.setattr("ctypes.CDLL", lambda name: Library(code, result, expired))

    return says


@pytest.mark.parametrize(("number", "name"), RESULTS.items())
def test_results_have_names_and_some_may_be_accepted(library, number, name):
    library(result=number)
    with pytest.raises(AttestationError, match=name) as caught:
        verified_by_dcap(b"")
    assert ("--accept-tcb" in str(caught.value)) is (name in ACCEPTABLE)
    for others in (ACCEPTABLE, (name,)):
        if name in ACCEPTABLE:
            verified_by_dcap(b"", others)
        else:
            with pytest.raises(AttestationError, match=name):
                verified_by_dcap(b"", others)
    with pytest.raises(AttestationError, match=name):
        verified_by_dcap(b"", set(ACCEPTABLE) - {name})
    library(result=number, expired=1)
    with pytest.raises(AttestationError, match="expired"):
        verified_by_dcap(b"", ACCEPTABLE)


def test_what_no_option_accepts(library):
    library()
    verified_by_dcap(b"")
    library(code=0xE001)
    with pytest.raises(AttestationError, match="0xe001"):
        verified_by_dcap(b"", ACCEPTABLE)
    library(result=0xA0FF)
    with pytest.raises(AttestationError, match="0xa0ff"):
        verified_by_dcap(b"", ACCEPTABLE)
    assert set(RESULTS.values()) - set(ACCEPTABLE) == {
        "INVALID_SIGNATURE",
        "REVOKED",
        "UNSPECIFIED",
    }
    for wrong in ("REVOKED", "OK", ""):
        with pytest.raises(UsageError, match="SW_HARDENING_NEEDED"):
            verifier("00", insecure=False, accept=[wrong])


# ---- what a stranger may pretend


@pytest.mark.parametrize(
    "backend", ["SGX enclave: \x1b[32msafe", "gramine-sgx\n", "x" * 1000, None, 7, ["gramine-sgx"]]
)
def test_what_a_fake_head_says_of_itself_is_not_repeated(backend):
    answer = {"public": HELLO[4:36].hex(), "nonce": "00" * 32, "backend": backend, "quote": ""}
    seen = []
    sock, _ = shaken(fake_head(answer), seen.append)
    sock.close()
    assert seen[0].backend == "unknown"


def test_a_claim_is_marked_as_one():
    for backend in ("gramine-sgx", "gramine-direct", "native", "unknown", "anything"):
        assert LABELS[claimed(backend, proven=False)].startswith("NO PROTECTION")
    assert claimed("gramine-sgx", proven=False) == CLAIMED
    assert LABELS[claimed("gramine-sgx", proven=True)].startswith("SGX enclave")


@pytest.mark.parametrize("code", [*REFUSALS, "\x1b[31mred", "", None, 7])
def test_a_refusal_is_told_in_our_own_words(code):
    with pytest.raises((ServiceError, SessionError)) as caught:
        shaken(fake_head({"error": code, "text": "\x1b[31m"}))
    assert str(caught.value).isprintable()
    if code in REFUSALS:
        assert (caught.value.code, str(caught.value)) == (code, REFUSALS[code])


# ---- who may connect


@pytest.fixture
def keys(tmp_path):
    public = make(tmp_path / "mine")
    (tmp_path / "clients").write_text(f"# who may\n\n{public} the team\n")
    return read_secret(tmp_path / "mine"), read_clients(tmp_path / "clients")


def test_a_pinned_key_opens_and_nothing_else_does(keys):
    secret, clients = keys
    echo = Echoing(clients=frozenset(clients))

    def client(own: bytes | None) -> Client:
        return Client(echo.address, [], Limits(), lambda hello: None, 5, own)

    client(secret).close()
    for wrong in (None, bytes(32)):
        with pytest.raises(ServiceError) as caught:
            client(wrong)
        assert caught.value.code == "client-unknown"
    sock, channel = shaken(echo.address)
    said = proof(secret, bytes(32))  # of another session
    assert ask(channel, "hello", **said)["error"] == "client-unknown"
    assert closed(sock)
    sock.close()
    sock, channel = shaken(echo.address)
    assert ask(channel, "classify", **proof(secret, channel.binding))["error"] == "client-unknown"
    sock.close()
    assert echo.service.refusals.count("client-unknown") == 4


def test_strangers_take_no_place_where_keys_are_pinned(keys):
    secret, clients = keys
    echo = Echoing(clients=frozenset(clients), bounds=replace(FEW, handshake=60))
    with many(12, echo.address, HELLO):
        client = Client(echo.address, [], Limits(), lambda hello: None, 5, secret)
        assert [s.owner for s in echo.listening.members] == list(clients)
        client.close()


def test_proofs():
    secret, binding = bytes(range(32)), b"b" * 32
    good = proof(secret, binding)
    assert proven(good, binding) == public_of(secret)
    assert proven(good, b"c" * 32) == ""
    other = proof(bytes(32), binding)
    for bad in (
        {},
        {"key": good["key"]},
        {**good, "key": other["key"]},
        {**good, "proof": other["proof"]},
        {**good, "proof": 5},
        {**good, "key": "zz"},
        {**good, "key": ["00"]},
    ):
        assert proven(bad, binding) == ""


def test_key_files(tmp_path):
    path = tmp_path / "key"
    public = make(path)
    assert path.stat().st_mode & 0o077 == 0
    assert public_of(read_secret(path)) == public
    with pytest.raises(UsageError, match="`client-key` got"):
        make(path)
    bad = tmp_path / "bad"
    for text in ("", "xx", public[:-1]):
        bad.write_text(text)
        with pytest.raises(UsageError, match="`client-key` got"):
            read_secret(bad)
        with pytest.raises(UsageError, match="`clients` got"):
            read_clients(bad)
    with pytest.raises(UsageError, match="`clients` got"):
        read_clients(tmp_path / "none")
    bad.write_text(f"{public}\n" * 1000)
    with pytest.raises(UsageError, match="1000 keys"):
        read_clients(bad)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "[::]", "2001:db8::1"])
def test_elsewhere_than_on_loopback_clients_must_be_known(host):
    with pytest.raises(UsageError, match="--clients FILE"):
        ServeOptions(host=host)
    assert ServeOptions(host=host, clients=("00" * 32,)).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "", "::1", "[::1]", "LOCALHOST"])
def test_on_loopback_they_need_not_and_no_resolver_is_needed(host, monkeypatch):
    def none(*_):
        raise AssertionError("an enclave has no resolver")

    monkeypatch.setattr(socket, "getaddrinfo", none)
    ServeOptions(host=host)
    assert is_loopback(host)
    if ":" in host and not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("no IPv6 here")
    with listen(host) as door:
        assert door.getsockname()[0] in ("127.0.0.1", "::1")


def test_other_names_are_refused():
    for host in ("example.org", "127.0.0.1 ", "[::1", "256.0.0.1", "x" * 1000):
        with pytest.raises(UsageError, match="`listen` got the host"):
            literal(host)


# ---- the tail's door


def test_silent_strangers_at_the_tails_door_keep_no_tail_out():
    door, errors = listen(), []
    comes = knocking(door, b"t" * 16, errors.append)
    with many(20, door.getsockname()), many(3, door.getsockname(), b"wrong token 1234"):
        with socket.create_connection(door.getsockname()) as tail:
            tail.sendall(b"t" * 8)
            time.sleep(0.05)
            tail.sendall(b"t" * 8)
            begun = time.monotonic()
            taken = next(comes)
            assert taken.getpeername() == tail.getsockname()
            assert time.monotonic() - begun < 2
            taken.close()
    assert sum("has not the token" in str(e) for e in errors) == 3
    comes.close()
    door.close()


# ---- a few bytes that want much


def jpeg_of_scans(count: int, between: bytes = b"") -> bytes:
    head = b"\xff\xd8" + b"\xff\xe0" + struct.pack(">H", 6) + b"\xff\xda\xff\xda"
    scan = b"\xff\xda" + struct.pack(">H", 4) + b"ab" + b"data\xff\x00\xff\xd0data"
    return head + (scan + between) * count + b"\xff\xd9" + b"\xff\xda" * 100


def test_a_jpeg_of_many_scans_is_too_large():
    effort_of(jpeg_of_scans(MAX_SCANS))
    comment = b"\xff\xfe" + struct.pack(">H", 4) + b"\xff\xd9"  # an end that is none
    for between in (b"", comment):
        with pytest.raises(PictureError) as caught:
            effort_of(jpeg_of_scans(MAX_SCANS + 1, between))
        assert caught.value.code == "too-large"
    for other in (b"", b"\xff\xd8", b"\x89PNG" + b"\xff\xda" * 100, b"\xff\xd8\xff\xe0\xff\xff"):
        effort_of(other)


def png_of_notes(count: int, kind: bytes = b"iCCP") -> bytes:
    """A PNG of a few bytes whose notes are a megabyte each once they are inflated."""
    body = b"k\0\0" + zlib.compress(bytes(1 << 20), 9)
    note = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    file = io.BytesIO()
    Image.new("RGB", (40, 40)).save(file, "PNG")
    return file.getvalue()[:33] + note * count + file.getvalue()[33:]


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_a_png_of_many_notes_is_too_large(kind):
    """Six hundred kilobytes of colour profiles take a second and a half to be read."""
    assert effort_of(png_of_notes(MAX_NOTES, kind)).notes == MAX_NOTES
    how = Preprocessing(24, 28)
    with pytest.raises(ServiceError) as caught:
        decoded(png_of_notes(MAX_NOTES + 1, kind), how, Limits())
    assert caught.value.code == "too-large"


def test_a_png_of_many_chunks_is_too_large():
    plain = png_of_notes(0)
    for count in (MAX_CHUNKS - 3, MAX_CHUNKS):
        data = plain[:33] + b"\0\0\0\0abCd\0\0\0\0" * count + plain[33:]
        if count < MAX_CHUNKS:
            assert effort_of(data).pieces == MAX_CHUNKS
        else:
            with pytest.raises(PictureError):
                effort_of(data)


MEASURE = """
import sys, io, torch
from PIL import Image
from partopt.enclave_runner.inside.decoding import decoded
from partopt.enclave_runner.inside.memory import let_go
from partopt.enclave_runner.program.parts import Limits, Part
from partopt.preprocessing import Preprocessing
torch.set_num_threads(1)
let_go()
def field(name):
    return int(next(x for x in open("/proc/self/status") if x.startswith(name)).split()[1]) << 10
def encoded(size, kind, mode, **how):
    file = io.BytesIO()
    Image.new("RGB", size, (9, 99, 3)).convert(mode).save(file, kind, **how)
    return file.getvalue()
how = Preprocessing(224, 256)
cases = eval(sys.argv[1])
sent = {name: encoded(*case[:3], **case[3]) for name, case in cases.items()}
decoded(encoded((2000, 100), "PNG", "RGB"), how, Limits())
for name, data in sent.items():
    open("/proc/self/clear_refs", "w").write("5")
    before = field("VmRSS")
    decoded(data, how, Limits())
    w, h = cases[name][0]
    print(name, (field("VmHWM") - before) / (w * h), (field("VmRSS") - before) >> 20)
"""
BIG = (1500, 1400)
KINDS = {
    "png": (BIG, "PNG", "RGB", {}),
    "layered": (BIG, "PNG", "RGBA", {}),
    "grey and layered": (BIG, "PNG", "LA", {}),
    "progressive": (BIG, "JPEG", "CMYK", {"progressive": True}),
    "webp": (BIG, "WEBP", "RGBA", {}),
    "thin, scaled up": ((21_000, 100), "PNG", "RGB", {}),
    "thin, scaled up twofold": ((17_000, 128), "PNG", "RGB", {}),
    "thin, as it is": ((8_200, 257), "PNG", "RGB", {}),
    "thin, scaled down": ((7_000, 300), "PNG", "RGB", {}),
}


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's peak")
def test_memory_for_a_pixel_is_what_the_enclave_is_sized_for():
    """And all of it is given back."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, repr(KINDS)], capture_output=True, text=True, check=True
    )
    found = [line.rsplit(" ", 2) for line in done.stdout.splitlines()]
    assert [name for name, _, _ in found] == list(KINDS)
    for name, each, left in found:
        assert 5 < float(each) < BYTES_PER_PIXEL, name
        assert int(left) < 24, name


def test_a_service_for_others_than_this_machine_from_the_command_line(
    made, photo, tmp_path, serving, keys, capsys
):
    """A key is made, pinned and used; who has none is told so by name."""
    assert cli.run(["client-key", str(tmp_path / "yours")]) == 0
    told = capsys.readouterr().out
    (tmp_path / "more").write_text((tmp_path / "clients").read_text() + told)
    key = str(made.folder.with_name("bundle.key"))
    more = ["--key", key, "--listen", "0.0.0.0:0", "--clients", str(tmp_path / "more")]
    _, address = serving(*more)
    port = int(address.rpartition(":")[2])
    part = Part.read(made.folder / "head")

    def client(secret) -> Client:
        at = "127.0.0.1", port
        return Client(at, part.answers, part.limits, lambda hello: None, 30, secret)

    for secret in (keys[0], read_secret(tmp_path / "yours")):
        with client(secret) as mine:
            assert torch.equal(mine.classify(photo).tensors[0], made.logits(photo))
    for secret in (None, bytes(32)):
        with pytest.raises(ServiceError) as caught:
            client(secret)
        assert caught.value.code == "client-unknown"
    (tmp_path / "photo.png").write_bytes(photo)
    command = ["run", str(made.folder), "--input", str(tmp_path / "photo.png"), "--json"]
    command += ["--connect", f"127.0.0.1:{port}", "--insecure-no-attestation"]
    assert cli.run([*command, "--client-key", str(tmp_path / "yours")]) == 0
    assert "NO PROTECTION" in capsys.readouterr().out
    assert cli.run(command) == 1
    assert "--client-key" in capsys.readouterr().err
