"""Keys by which a head worker knows its clients: who may connect, and what a client proves it with.

A client's secret stays with it; the service is given public keys, a line each.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from ..errors import UsageError
from .program.sealing import write_key
from .wire.proofs import public_of
from .wire.start import MAX_KEYS

_MOST_BYTES = 1 << 20


def make(path: Path) -> str:
    """Write a new secret to `path`, readable by its owner alone; returns the public key.

    Raises:
        UsageError: The file is there, or cannot be written.
    """
    secret = secrets.token_bytes(32)
    try:
        write_key(path, secret)
    except OSError as error:
        raise UsageError(
            f"`client-key` got {str(path)!r}, which cannot be written ({error.strerror}); name a "
            "new file"
        ) from None
    return public_of(secret)


def read_secret(path: Path) -> bytes:
    """The secret in a file that `make` wrote.

    Raises:
        UsageError: Missing, or no such file.
    """
    text = _text("client-key", path).strip()
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise UsageError(
            f"`client-key` got {str(path)!r}, which holds no key of 64 hex digits; make one with "
            "partopt client-key"
        )
    return bytes.fromhex(text)


def read_clients(path: Path) -> tuple[str, ...]:
    """The public keys in a file: one a line, then a name; lines that begin with # are notes.

    Raises:
        UsageError: Missing, a line that is none, no key or too many.
    """
    keys = []
    for number, line in enumerate(_text("clients", path).splitlines(), 1):
        first = line.split()[:1]
        if not first or first[0].startswith("#"):
            continue
        if not re.fullmatch("[0-9a-f]{64}", first[0]):
            raise UsageError(
                f"`clients` got {str(path)!r}, whose line {number} begins with no public key of 64 "
                "hex digits; partopt client-key prints one"
            )
        keys.append(first[0])
    if not 1 <= len(keys) <= MAX_KEYS - 1:
        raise UsageError(
            f"`clients` got {str(path)!r}, which holds {len(keys)} keys; use 1 to {MAX_KEYS - 1}"
        )
    return tuple(keys)


def _text(name: str, path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(
            f"`{name}` got {str(path)!r}, which cannot be read ({why}); name another file"
        ) from None
