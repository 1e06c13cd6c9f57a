"""Render and sign a manifest with Gramine's own tools."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...errors import BackendError
from .bundle import TEMPLATE
from .gramine import INSTALL, run_tool

TOOLS = ("gramine-manifest", "gramine-sgx-sign")
SIGNED = ("head.manifest", "head.manifest.sgx", "head.sig")
# Offset and length of ENCLAVEHASH in SIGSTRUCT (Intel SDM, volume 3D, table 38-21).
_ENCLAVEHASH = slice(960, 992)


def missing() -> list[str]:
    """Tools that are not on PATH."""
    return [t for t in TOOLS if shutil.which(t) is None]


def sign(folder: Path, key: Path | None) -> str:
    """Sign the manifest template in `folder`; return MRENCLAVE, hexadecimal.

    Args:
        folder: Holds the template; gets `SIGNED`.
        key: RSA key as Gramine wants it; None makes one that lives for this call.

    Raises:
        BackendError: A tool is missing or fails.
    """
    if missing():
        raise BackendError(f"{', '.join(missing())} not on PATH; install Gramine ({INSTALL})")
    own = folder / ".key.pem"
    try:
        if key is None:
            run_tool(["gramine-sgx-gen-private-key", str(own)], folder)
        run_tool(["gramine-manifest", TEMPLATE, SIGNED[0]], folder)
        run_tool(
            [
                *("gramine-sgx-sign", "--manifest", SIGNED[0], "--output", SIGNED[1]),
                *("--key", str(key or own)),
            ],
            folder,
        )
    finally:
        own.unlink(missing_ok=True)
    return (folder / SIGNED[2]).read_bytes()[_ENCLAVEHASH].hex()
