"""A client's proof that it has a pinned key: an Ed25519 signature over this session's binding.

The binding is the hash of the handshake, which holds fresh values of both sides: a proof is of no
use in another session, and whoever relays it has not the session's keys.
"""

from __future__ import annotations

from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_WHAT = b"partopt client 1"


def public_of(secret: bytes) -> str:
    """The public key of 32 secret bytes, in hexadecimal."""
    return Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw().hex()


def proof(secret: bytes, binding: bytes) -> dict[str, str]:
    """What a client's hello holds where keys are pinned."""
    signature = Ed25519PrivateKey.from_private_bytes(secret).sign(_WHAT + binding)
    return {"key": public_of(secret), "proof": signature.hex()}


def proven(hello: dict[str, Any], binding: bytes) -> str:
    """The public key that a hello proves to have, in hexadecimal; empty where it proves none."""
    try:
        key, signature = bytes.fromhex(hello["key"]), bytes.fromhex(hello["proof"])
        Ed25519PublicKey.from_public_bytes(key).verify(signature, _WHAT + binding)
    except (KeyError, TypeError, ValueError, InvalidSignature):
        return ""
    return key.hex()
