"""Files at rest under AES-256-GCM: a header, then chunks that can neither be swapped nor dropped.

Layout: magic (8 bytes), salt (32), then each chunk of at most 1 MiB with its tag. The file's own
key is HKDF-SHA256 of the user's key and the salt (RFC 5869), so that one user key may seal many
files. The nonce is the chunk's number and whether it is the last, as in the STREAM construction
(Hoang, Reyhanitabar, Rogaway, Vizar: "Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance", CRYPTO 2015). Authenticated with every chunk are the file's name and whatever
else the caller binds it to: it does not open beside anything else.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ...errors import BundleError

MAGIC = b"POSEAL01"
KEY_BYTES = 32
_SALT, _CHUNK, _TAG = 32, 1 << 20, 16


def new_key() -> bytes:
    """A fresh 256-bit key from the operating system's generator."""
    return secrets.token_bytes(KEY_BYTES)


def derive(key: bytes, purpose: str, length: int = 32, salt: bytes = b"") -> bytes:
    """A key for `purpose` from `key` (HKDF-SHA256)."""
    return HKDF(SHA256(), length, salt or None, b"partopt " + purpose.encode()).derive(key)


def seal(data: bytes, key: bytes, name: str, bound: bytes = b"") -> bytes:
    """Encrypt `data` as the file `name`, bound to `bound`."""
    beside = _beside(name, bound)
    salt = secrets.token_bytes(_SALT)
    cipher = AESGCM(derive(key, "file", salt=salt))
    out = [MAGIC, salt]
    starts = range(0, max(1, len(data)), _CHUNK)
    for number, start in enumerate(starts):
        last = number == len(starts) - 1
        out.append(cipher.encrypt(_nonce(number, last), data[start : start + _CHUNK], beside))
    return b"".join(out)


def unseal(sealed: bytes, key: bytes, name: str, bound: bytes = b"") -> bytes:
    """Decrypt what `seal` made.

    Raises:
        BundleError: The key is wrong, the file was changed, cut off or renamed, or what it is bound
            to is another.
    """
    beside = _beside(name, bound)
    if len(key) != KEY_BYTES or sealed[: len(MAGIC)] != MAGIC:
        raise BundleError(f"{name!r} is no sealed file, or the key has not {KEY_BYTES} bytes")
    body = memoryview(sealed)[len(MAGIC) + _SALT :]
    cipher = AESGCM(derive(key, "file", salt=sealed[len(MAGIC) : len(MAGIC) + _SALT]))
    starts = range(0, max(1, len(body)), _CHUNK + _TAG)
    try:
        return b"".join(
            cipher.decrypt(
                _nonce(i, i == len(starts) - 1), body[start : start + _CHUNK + _TAG], beside
            )
            for i, start in enumerate(starts)
        )
    except InvalidTag:
        raise BundleError(
            f"{name!r} does not open: the key is wrong, or the bundle was changed since export; "
            "give the key and the bundle that export wrote"
        ) from None


def _beside(name: str, bound: bytes) -> bytes:
    """What is authenticated with every chunk; no name and bound read like another pair."""
    return len(name.encode()).to_bytes(4, "big") + name.encode() + bound


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def write_key(path: Path, key: bytes) -> None:
    """Write `key` as hex digits, readable by the owner alone; never overwrites."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key.hex() + "\n")


def read_key(path: Path) -> bytes:
    """Read a key file.

    Raises:
        BundleError: Missing, or not 64 hex digits.
    """
    try:
        text = path.read_text().strip() if path.stat().st_size < 1024 else ""
        key = bytes.fromhex(text)
    except (OSError, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise BundleError(
            f"`key` got {str(path)!r}, which holds no key of 64 hex digits; give the file that "
            "export wrote"
        )
    return key
