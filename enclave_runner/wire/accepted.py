"""What a head worker takes from clients, whatever its bundle; known inside and outside."""

from __future__ import annotations

from dataclasses import dataclass

# Every decoder in the enclave is code to trust. Clients send other formats as PNG.
FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
# What a head worker may say that it runs in; anything else is unknown.
BACKENDS = ("gramine-sgx", "gramine-direct", "native")
# Sessions at once.
MAX_CLIENTS = 32
# Bytes of memory that decoding and resizing takes at its peak for each pixel of the largest
# picture; a test measures it over all kinds of pictures.
BYTES_PER_PIXEL = 32
# What a JPEG may make a decoder go over its pixels; encoders write about ten scans.
MAX_SCANS, MAX_SEGMENTS = 32, 4096
# Likewise a PNG: pieces that are inflated beside its pixels, to a megabyte each, and pieces at all.
MAX_NOTES, MAX_CHUNKS = 32, 1 << 16

# Why no answer is given, in words of the client's own: those of a stranger are not repeated.
REFUSALS = {
    "full": "the head worker is full: all its places are taken; try again later",
    "starting": "the head worker is starting; ask again in a moment",
    "late": "the head worker gave this client up, which was too slow; connect again",
    "idle": "the head worker closed this session, which was idle; connect again",
    "client-unknown": "the head worker does not know this client's key; have its public key added "
    "to the service's --clients file and give the key with --client-key",
    "quote-failed": "the head worker's enclave cannot be quoted, so that it proves nothing; its "
    "operator sets up the AESM service and DCAP",
}


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What strangers and clients may take of the head worker. Times in seconds.

    Attributes:
        clients: Sessions at once.
        pending: Connections at once that have not finished their handshake.
        handshake: For a client to finish its handshake, a quote's making aside.
        quote: For its quote to be made.
        frame, rate: For a frame to arrive: `frame`, and a second more for each `rate` bytes.
        idle: Without a message, until a session ends.
        spare: Without a message, until a session may lose its place to a newcomer.
        stalled: For a client to take the next bytes of its answers.
        incoming: Bytes of frames that are not whole yet, of all clients.
        unproven: Bytes of a message before the client proved itself, or the weights are open.
    """

    clients: int = MAX_CLIENTS
    pending: int = MAX_CLIENTS
    handshake: float = 10.0
    quote: float = 30.0
    frame: float = 15.0
    rate: int = 1 << 16
    idle: float = 600.0
    spare: float = 1.0
    stalled: float = 10.0
    incoming: int = 64 << 20
    unproven: int = 1 << 16


def worst_case_bytes(image_pixels: int, image_bytes: int, answer_bytes: int) -> int:
    """Memory that clients can make a head worker take, beyond what the network itself needs."""
    waiting = Bounds().incoming + queued_bytes(image_bytes)
    return image_pixels * BYTES_PER_PIXEL + 3 * image_bytes + waiting + owed_bytes(answer_bytes)


def queued_bytes(image_bytes: int) -> int:
    """Bytes of images that may wait, of all clients."""
    return 4 * image_bytes


def owed_bytes(answer_bytes: int) -> int:
    """Bytes of answers that may wait to be taken, of all clients."""
    return 16 * answer_bytes + (8 << 20)
