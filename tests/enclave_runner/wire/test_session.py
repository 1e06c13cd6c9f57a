import json
import random
import socket
import struct
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from partopt.enclave_runner.attestation import parse, verified_by_dcap, verifier
from partopt.enclave_runner.wire.messages import MAX_HEAD, Control, decode, encode
from partopt.enclave_runner.wire.session import Channel, Hello, accept, connect
from partopt.enclave_runner.wire.start import start_from
from partopt.enclave_runner.wire.transport import receive_exactly
from partopt.errors import AttestationError, FrameError, SessionError

MOST = 10_000


@pytest.fixture
def wire():
    a, b = socket.socketpair()
    yield a, b
    a.close()
    b.close()


def handshake(wire, verify=lambda hello: None, quote=lambda data: b""):
    found = {}
    thread = threading.Thread(
        target=lambda: found.update(head=accept(wire[1], "native", quote, MOST))
    )
    thread.start()
    try:
        client, hello = connect(wire[0], verify, MOST)
    finally:
        thread.join()  # a refused head is still at work when the fixture would close its socket
    return client, found["head"], hello


def test_messages_cross_both_ways_and_are_encrypted(wire):
    client, head, hello = handshake(wire)
    assert hello.backend == "native"
    for i in range(3):
        client.send(b"picture" * i)
        assert head.receive(5) == b"picture" * i
        head.send(b"answer")
        assert client.receive(5) == b"answer"
    client.send(b"a secret that is long enough")
    seen = wire[1].recv(1000)
    assert b"secret" not in seen


def between(client_end, head_end, change_hello, change_answer):
    """Somebody on the wire who changes the handshake, and then lets everything through."""
    hello = receive_exactly(client_end, 4 + 32 + 32)
    head_end.sendall(change_hello(bytes(hello)))
    (length,) = struct.unpack("<I", receive_exactly(head_end, 4))
    answer = change_answer(json.loads(bytes(receive_exactly(head_end, length))))
    raw = json.dumps(answer).encode()
    client_end.sendall(struct.pack("<I", len(raw)) + raw)


def same(said):
    return said


def another_salt(hello: bytes) -> bytes:
    """The client's random bytes, which nothing but the transcript holds."""
    return hello[:-1] + bytes([hello[-1] ^ 1])


def another(field: str, value: str):
    return lambda answer: {**answer, field: value}


OTHERS_KEY = X25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()
CHANGES = {
    "client's random bytes": (another_salt, same),
    "nonce": (same, another("nonce", "00" * 32)),
    "public key": (same, another("public", OTHERS_KEY.hex())),
    "backend": (same, another("backend", "gramine-sgx")),
}


def changed_handshake(wire, change, verify, quote=lambda data: b""):
    """Handshake over two connections with somebody between them who makes a change."""
    found = {}
    near, far = socket.socketpair()

    def head() -> None:
        found["head"] = accept(wire[1], "native", quote, MOST)

    threads = [
        threading.Thread(target=head),
        threading.Thread(target=between, args=(far, wire[0], *CHANGES[change])),
    ]
    for thread in threads:
        thread.start()
    try:
        channel, _ = connect(near, verify, MOST)
    except BaseException:
        near.close()
        raise
    finally:
        for thread in threads:
            thread.join()
        far.close()
    return channel, near, found["head"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_handshake_that_was_changed_on_the_way_gives_no_common_key(wire, change):
    client, near, head = changed_handshake(wire, change, lambda hello: None)
    with near:
        kept, (client._sock, ours) = client._sock, socket.socketpair()
        with client._sock, ours:
            client.send(b"a picture")
            head._sock = ours
            with pytest.raises(FrameError) as caught:
                head.receive(5)
        kept.close()
    assert caught.value.code == "forged"


@pytest.mark.parametrize("change", ["client's random bytes", "nonce", "public key"])
def test_a_quote_holds_for_the_handshake_that_it_was_made_in(wire, change):
    verify = verifier(MRENCLAVE.hex(), insecure=False, by_library=lambda q: None)
    with pytest.raises(AttestationError, match="another handshake"):
        changed_handshake(wire, change, verify, quote)


def test_two_sessions_have_different_keys(wire):
    first, _, _ = handshake(wire)
    a, b = socket.socketpair()
    with a, b:
        _, other, _ = handshake((a, b))
        first.send(b"for the first head worker")
        b_raw = wire[1].recv(1000)
        a.sendall(b_raw)
        with pytest.raises(FrameError) as caught:
            other.receive(5)
        assert caught.value.code == "forged"


def raw_frame(client, wire, message=b"hello") -> bytes:
    client.send(message)
    return wire[1].recv(1000)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        ("flip", "forged"),
        ("replay", "replayed"),
        ("skip", "unexpected"),
        ("huge", "oversized"),
        ("short", "truncated"),
        ("cut", "truncated"),
    ],
)
def test_each_damage_has_its_code(wire, damage, code):
    client, head, _ = handshake(wire)
    raw = raw_frame(client, wire)
    a, b = socket.socketpair()
    head._sock = b
    with a, b:
        if damage == "flip":
            a.sendall(raw[:-1] + bytes([raw[-1] ^ 1]))
        elif damage == "replay":
            a.sendall(raw + raw)
            assert head.receive(5) == b"hello"
        elif damage == "skip":
            a.sendall(raw_frame(client, wire))
        elif damage == "huge":
            a.sendall(struct.pack("<IQ", 1 << 31, 0))
        elif damage == "short":
            a.sendall(struct.pack("<IQ", 3, 0) + b"abc")
        else:
            a.sendall(raw[:-4])
            a.shutdown(socket.SHUT_WR)
        with pytest.raises(FrameError) as caught:
            head.receive(5)
        assert caught.value.code == code


def test_messages_beyond_the_limit_are_not_sent(wire):
    client, _, _ = handshake(wire)
    with pytest.raises(FrameError, match="at most 10000"):
        client.send(bytes(MOST + 1))


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n" + b"x" * 60, b"POC1" + bytes(64), b""])
def test_what_is_no_client_is_refused(wire, said):
    wire[0].sendall(said)
    wire[0].shutdown(socket.SHUT_WR)
    with pytest.raises((FrameError, SessionError, ConnectionError)):
        accept(wire[1], "native", lambda _: b"", MOST)


@pytest.mark.parametrize(
    "said", [b"\xff\xff\xff\xff", struct.pack("<I", 2) + b"{}", struct.pack("<I", 4) + b"null", b""]
)
def test_what_is_no_head_worker_is_refused(wire, said):
    wire[1].sendall(said)
    wire[1].shutdown(socket.SHUT_WR)
    with pytest.raises(SessionError, match="no head worker answers"):
        connect(wire[0], lambda hello: None, MOST)


MRENCLAVE = bytes(range(32))


def quote(report_data: bytes, mrenclave=MRENCLAVE, debug=False, version=3) -> bytes:
    raw = bytearray(48 + 384 + 4 + 64)
    raw[0:2] = version.to_bytes(2, "little")
    raw[96:104] = (2 if debug else 0).to_bytes(8, "little")
    raw[112:144] = mrenclave
    raw[368:432] = report_data
    return bytes(raw)


def test_a_good_quote_convinces(wire):
    checked = []
    verify = verifier(MRENCLAVE.hex(), insecure=False, by_library=checked.append)
    client, head, _ = handshake(wire, verify, quote)
    assert len(checked) == 1
    client.send(b"x")
    assert head.receive(5) == b"x"


@pytest.mark.parametrize(
    ("made", "mrenclave", "message"),
    [
        (lambda d: quote(d, mrenclave=bytes(32)), MRENCLAVE.hex(), "another program"),
        (lambda d: quote(d, debug=True), MRENCLAVE.hex(), "debug mode"),
        (lambda d: quote(bytes(64)), MRENCLAVE.hex(), "another handshake"),
        (lambda d: quote(d, version=4), MRENCLAVE.hex(), "version 3"),
        (lambda d: quote(d)[:100], MRENCLAVE.hex(), "version 3"),
        (lambda d: b"", MRENCLAVE.hex(), "proves nothing"),
        (lambda d: quote(d), None, "no MRENCLAVE"),
    ],
)
def test_quotes_that_do_not_convince(wire, made, mrenclave, message):
    verify = verifier(mrenclave, insecure=False, by_library=lambda q: None)
    with pytest.raises(AttestationError, match=message):
        handshake(wire, verify, made)


def test_a_quote_that_no_library_can_check_is_refused(monkeypatch):
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(AttestationError, match="cannot be checked"):
        verified_by_dcap(quote(bytes(64)))


def test_parsing_finds_the_fields():
    found = parse(quote(b"\7" * 64, debug=True))
    assert (found.mrenclave, found.debug, found.report_data) == (MRENCLAVE, True, b"\7" * 64)


def test_insecure_must_be_said():
    hello = Hello("native", b"", bytes(64))
    verifier(None, insecure=True)(hello)
    with pytest.raises(AttestationError, match="--insecure-no-attestation"):
        verifier(None, insecure=False)(hello)


def test_fuzzed_session_frames_are_all_refused():
    """10,000 frames with flipped bytes; a fresh channel each, so that each reaches the cipher."""
    source = random.Random(1)
    key = bytes(32)
    a, b = socket.socketpair()
    with a, b:
        Channel(a, key, key, MOST).send(b"some message")
        good = b.recv(1000)
        for _ in range(10_000):
            raw = bytearray(good)
            for _ in range(source.randint(1, 3)):
                place = source.randrange(len(raw))
                raw[place] ^= source.randint(1, 255)
            if bytes(raw) == good:
                continue
            a.sendall(raw)
            length = int.from_bytes(raw[:4], "little")
            if 16 <= length <= MOST + 16 and length > len(good) - 12 and raw[4:12] == bytes(8):
                a.sendall(bytes(length - (len(good) - 12)))
            with pytest.raises(FrameError):
                Channel(b, key, key, MOST).receive(5)
            b.setblocking(False)
            try:
                while b.recv(65536):
                    pass
            except BlockingIOError:
                b.setblocking(True)


def test_messages():
    head, body = decode(encode({"id": 1, "do": "x"}, b"\0\1"))
    assert (head, body) == ({"id": 1, "do": "x"}, b"\0\1")
    for bad in (
        b"",
        b"\0\0",
        b"\xff\xff\xff\xff",
        struct.pack("<I", 2) + b"[]",
        encode({})[:-1],
        struct.pack("<I", MAX_HEAD) + b"[" * MAX_HEAD,
    ):
        with pytest.raises(FrameError):
            decode(bad)


def test_control_lines(wire):
    ours, theirs = Control(wire[0]), Control(wire[1])
    ours.send(event="ready", n=1)
    assert theirs.read() == {"event": "ready", "n": 1}
    wire[0].sendall(b"no json\n")
    with pytest.raises(FrameError, match="no JSON object"):
        theirs.read()
    wire[0].sendall(b"x" * 100_000)
    with pytest.raises(FrameError, match="too long"):
        theirs.read()


GOOD = {
    "transport": "shm",
    "area": "/dev/shm/x",
    "slots": 2,
    "batch": 1,
    "threads": 1,
    "queue": 4,
    "host": "127.0.0.1",
    "port": 0,
    "token": "00" * 16,
}


@pytest.mark.parametrize(
    "change",
    [
        {"slots": 0},
        {"slots": 10**9},
        {"batch": True},
        {"threads": "2"},
        {"transport": "smoke"},
        {"port": 70000},
        {"area": 5},
        {"timeout": -1},
        {"more": 1},
        {"area": "x" * 5000},
    ],
)
def test_a_start_line_out_of_bounds_is_refused(change):
    start_from(GOOD)
    with pytest.raises(FrameError, match="start line"):
        start_from({**GOOD, **change})
    with pytest.raises(FrameError):
        start_from(None)
