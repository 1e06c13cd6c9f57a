"""A bundle signed as a whole, with Ed25519: who says that it is theirs.

The signature covers ``bundle.json``, which holds the hash of every file. It lies beside it as
hexadecimal digits. Keys are PEM files, as ``openssl genpkey -algorithm ed25519`` writes them.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from ...cache import written_whole
from ...errors import BundleError, UsageError
from ..program.plain_json import bounded
from .bundle import FILE, MAX_BYTES

SIGNATURE = "bundle.json.sig"
_PURPOSE = b"partopt bundle signature 1\n"
_MAX_KEY = 1 << 14


def signing_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file.

    Raises:
        UsageError: There is none of Ed25519 in it, or it wants a password.
    """
    try:
        key = load_pem_private_key(bounded(path, _MAX_KEY), None)
    except (BundleError, ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(
            f"`sign-bundle` got {str(path)!r}, which holds no private Ed25519 key without a "
            "password; make one with openssl genpkey -algorithm ed25519"
        )
    return key


def trusted_key(path: Path) -> Ed25519PublicKey:
    """The public key in a PEM file.

    Raises:
        UsageError: There is none of Ed25519 in it.
    """
    try:
        key = load_pem_public_key(bounded(path, _MAX_KEY))
    except (BundleError, ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(
            f"`trust` got {str(path)!r}, which holds no public Ed25519 key; write it with openssl "
            "pkey -in KEY.pem -pubout"
        )
    return key


def sign_bundle(folder: Path, key: Ed25519PrivateKey) -> None:
    """Sign ``bundle.json`` as it stands in `folder`."""
    signature = key.sign(_PURPOSE + (folder / FILE).read_bytes())
    with written_whole(folder / SIGNATURE) as temporary:
        temporary.write_text(signature.hex() + "\n")


def hold_trusted(folder: Path, key: Path) -> None:
    """Raise unless the bundle in `folder` is signed with the private half of `key`.

    Nothing of it is parsed; `read_bundle` then compares the files with what is signed.

    Raises:
        UsageError: `key` is none.
        BundleError: Not signed, or by somebody else, or changed since.
    """
    trusted = trusted_key(key)
    if not (folder / FILE).is_file():
        raise BundleError(f"`bundle` got {str(folder)!r}, which holds no {FILE}")
    if not (folder / SIGNATURE).is_file():
        raise BundleError(
            f"{str(folder)!r} is not signed; export it with --sign-bundle, or leave --trust out"
        )
    try:
        signature = bytes.fromhex(bounded(folder / SIGNATURE, 1024).decode("ascii").strip())
        trusted.verify(signature, _PURPOSE + bounded(folder / FILE, MAX_BYTES))
    except (InvalidSignature, ValueError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(
            f"{str(folder)!r} is not signed by {str(key)!r}: it is somebody else's, or was "
            "changed; do not run it"
        ) from None
