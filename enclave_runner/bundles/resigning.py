"""A bundle gets its enclave's signature: in its export, or later, on the image that runs it."""

from __future__ import annotations

from pathlib import Path

from ...errors import BackendError, UsageError
from . import signing
from .bundle import FILE, MANIFEST, MODULES, SIGSTRUCT, Bundle, digest, read_bundle
from .gramine import INSTALL
from .needs import worker_of
from .trust import SIGNATURE, hold_trusted, sign_bundle, signing_key


def enclave_key(option: str, key: Path) -> Path:
    """`key`, once it is known that a bundle can be signed with it here.

    Raises:
        UsageError: There is no such file.
        BackendError: Gramine's tool is missing.
    """
    if not key.is_file():
        raise UsageError(f"`{option}` got {str(key)!r}, which does not exist")
    if signing.missing():
        raise BackendError(
            f"`{option}` needs {', '.join(signing.missing())}, not on PATH; install Gramine "
            f"({INSTALL}), or export now and run partopt sign where it is installed"
        )
    return key


def with_enclave(folder: Path, bundle: Bundle, key: Path) -> Bundle:
    """Sign the enclave of `bundle`; return what ``bundle.json`` says then, which is not written."""
    mrenclave = signing.sign(folder, worker_of(folder), key)
    new = {name: digest(folder / name) for name in (MANIFEST, SIGSTRUCT, MODULES)}
    files = dict(sorted({**bundle.files, **new}.items()))
    return bundle.model_copy(update={"mrenclave": mrenclave, "files": files})


def sign_later(
    folder: Path, key: Path, bundle_key: Path | None = None, trusted: Path | None = None
) -> Bundle:
    """Sign the enclave of an exported bundle, and the bundle as a whole again if it was.

    Args:
        folder: The bundle.
        key: RSA key for ``gramine-sgx-sign``.
        bundle_key: Ed25519 key that signs the whole bundle.
        trusted: Public Ed25519 key that the bundle must be signed with already.

    Raises:
        UsageError: A key that is none, or a signed bundle without `bundle_key`.
        BackendError: Gramine's tool is missing or fails.
        BundleError: The bundle was changed.
    """
    enclave_key("key", key)
    signer = signing_key(bundle_key) if bundle_key is not None else None
    if trusted is not None:
        hold_trusted(folder, trusted)
    if signer is None and (folder / SIGNATURE).exists():
        raise UsageError(
            f"`bundle` got {str(folder)!r}, which is signed as a whole; {FILE} changes, so give "
            "--sign-bundle too"
        )
    bundle = with_enclave(folder, read_bundle(folder), key)
    bundle.write(folder)
    if signer is not None:
        sign_bundle(folder, signer)
    return bundle
