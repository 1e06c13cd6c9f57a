"""Sign a worker's enclave with Gramine's tool; hold what is signed against our own manifest."""

from __future__ import annotations

import shutil
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from ...errors import BackendError, BundleError
from .archive import NAME, archived
from .bundle import MANIFEST, SIGSTRUCT, digest
from .gramine import INSTALL, installed, run_tool
from .manifest import GramineWorker, render

TOOLS = ("gramine-sgx-sign",)
# Offset and length of ENCLAVEHASH in SIGSTRUCT (Intel SDM, volume 3D, table 38-21).
_ENCLAVEHASH = slice(960, 992)
_MAX_MANIFEST = 16 << 20
# What gramine-sgx-sign adds to the table `sgx` where a manifest says nothing.
_DEFAULTS: dict[str, Any] = {
    "isvprodid": 0,
    "isvsvn": 0,
    "enable_stats": False,
    "edmm_enable": False,
    "use_exinfo": False,
}
_FEATURES = {"avx": "unspecified", "avx512": "unspecified", "amx": "unspecified"}
_FEATURES |= {"mpx": "disabled", "pkru": "disabled"}


def missing() -> list[str]:
    """Tools that are not on PATH."""
    return [t for t in TOOLS if shutil.which(t) is None]


def sign(folder: Path, worker: GramineWorker, key: Path | None) -> str:
    """Sign `worker`, which runs in `folder`; return MRENCLAVE, hexadecimal.

    Args:
        folder: Gets ``head.manifest.sgx``, ``head.sig`` and ``head.modules``.
        worker: What the manifest is rendered from.
        key: RSA key as Gramine wants it; None makes one that lives for this call.

    Raises:
        BackendError: A tool is missing or fails.
    """
    if missing():
        raise BackendError(f"{', '.join(missing())} not on PATH; install Gramine ({INSTALL})")
    with tempfile.TemporaryDirectory(prefix="partopt-sign-") as hidden:
        own, plain = Path(hidden) / "key.pem", Path(hidden) / "head.manifest"
        archive = archived(worker.files)
        (folder / NAME).write_bytes(archive.data)
        plain.write_text(render(worker, installed(), folder, (NAME, archive)))
        if key is None:
            run_tool(["gramine-sgx-gen-private-key", str(own)], folder)
        run_tool(
            [
                *("gramine-sgx-sign", "--manifest", str(plain), "--output", MANIFEST),
                *("--sigfile", SIGSTRUCT, "--key", str(key.resolve() if key else own)),
            ],
            folder,
        )
    return measured(folder)


def measured(folder: Path) -> str:
    """MRENCLAVE, as the signature in `folder` says, hexadecimal."""
    return (folder / SIGSTRUCT).read_bytes()[_ENCLAVEHASH].hex()


def hold_signed(folder: Path, worker: GramineWorker, mrenclave: str | None) -> None:
    """Raise unless the signed manifest in `folder` is the one that we would render for `worker`.

    Gramine does what a signed manifest says, whoever wrote it: mount any folder, start anything.

    Raises:
        BundleError: It says something else, or is of another enclave than the bundle names.
        BackendError: It is not signed.
    """
    if mrenclave is None or not all((folder / n).is_file() for n in (SIGSTRUCT, MANIFEST, NAME)):
        raise BackendError("the bundle is not signed; run partopt sign BUNDLE --key KEY.pem")
    if measured(folder) != mrenclave:
        raise BundleError(f"{SIGSTRUCT!r} is of another enclave than the bundle's; sign it again")
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise BundleError(f"{MANIFEST!r} has more than {_MAX_MANIFEST} bytes")
        theirs = tomllib.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{MANIFEST!r} cannot be read; sign it again") from None
    archive = archived(worker.files)
    if digest(folder / NAME) != archive.sha256:
        raise BundleError(
            f"{NAME!r} is not made of this machine's modules: partopt, Python or a package changed "
            "since it was signed; sign it again"
        )
    ours = tomllib.loads(render(worker, installed(), folder, (NAME, archive)))
    if _with_defaults(ours) != _with_defaults(theirs):
        raise BundleError(
            f"{MANIFEST!r} is not what partopt renders for this bundle on this machine: it was "
            "signed elsewhere, or files of this machine changed; run partopt sign here"
        )


def _with_defaults(manifest: dict[str, Any]) -> dict[str, Any]:
    sgx = manifest.get("sgx")
    if not isinstance(sgx, dict):
        return manifest
    features = sgx.get("cpu_features")
    filled = {**_FEATURES, **(features if isinstance(features, dict) else {})}
    return {**manifest, "sgx": {**_DEFAULTS, **sgx, "cpu_features": filled}}
