"""Start a worker: natively, or inside Gramine with or without SGX. One way for all who need one."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import BackendError, ServiceError, UsageError
from .bundles.bundle import read_bundle
from .bundles.gramine import INSTALL, installed
from .bundles.manifest import ENVIRONMENT, GramineWorker, render
from .bundles.needs import worker_of
from .bundles.signing import hold_signed
from .presence import Presence, detect
from .wire.messages import PORT_VARIABLE, TOKEN_BYTES, TOKEN_VARIABLE, Control, listen
from .wire.transport import receive_exactly

BACKENDS = ("gramine-sgx", "gramine-direct", "native")
MANIFEST = "head.manifest"
_PACKAGE = __name__.split(".")[0]


def resolve_enclave(name: str, here: Presence | None = None, signed: bool = True) -> str:
    """Resolve ``auto`` to the strongest backend there is; check the rest.

    Args:
        name: ``auto`` or a backend.
        here: What the machine has; looked up if None.
        signed: Whether the worker has a signed manifest; ``auto`` takes SGX only then.

    Raises:
        UsageError: Unknown backend.
        BackendError: A backend that this machine lacks.
    """
    here = here or detect()
    if name == "auto":
        if here.gramine_sgx and here.sgx_device and signed:
            return "gramine-sgx"
        return "gramine-direct" if here.gramine_direct else "native"
    if name not in BACKENDS:
        raise UsageError(f"`enclave` got {name!r}; use auto, {', '.join(BACKENDS)}")
    if name == "gramine-direct" and not here.gramine_direct:
        raise BackendError(
            f"`enclave` got {name!r}, but gramine-direct is not on PATH; install it ({INSTALL})"
        )
    if name == "gramine-sgx":
        if not here.gramine_sgx:
            raise BackendError(
                f"`enclave` got {name!r}, but gramine-sgx is not on PATH ({INSTALL})"
            )
        if not here.sgx_device:
            raise BackendError(f"`enclave` got {name!r}, but this machine has no /dev/sgx_enclave")
    return name


@dataclass
class Started:
    """A running worker and the control connection to it."""

    process: subprocess.Popen[bytes]
    control: Control
    log: IO[bytes]

    def said(self) -> str:
        """What the worker printed."""
        return _read(self.log)

    def stop(self, patience: float = 5.0) -> None:
        """Hang up, then wait, then kill."""
        self.control.close()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def _read(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read(1 << 20).decode(errors="replace")


def launch_python(
    module: str, *arguments: str, pass_fds: Sequence[int] = (), timeout: float = 120.0
) -> Started:
    """Start ``python -m partopt.MODULE ARGUMENTS`` as an ordinary process."""
    command = [sys.executable, "-I", "-B", "-m", f"{_PACKAGE}.{module}", *arguments]
    return _started(command, None, pass_fds, timeout)


def rendered(backend: str, folder: Path, into: Path) -> Path:
    """The manifest to start the bundle in `folder` with, rendered into `into` for direct mode.

    Raises:
        BundleError: What the bundle says that it needs, or its signed manifest, is not ours.
        BackendError: It is not signed, or Gramine is not installed.
    """
    worker = worker_of(folder)
    if backend == "gramine-sgx":
        hold_signed(folder, worker, read_bundle(folder).mrenclave)
        return folder / MANIFEST
    return written(worker, folder, into)


def written(worker: GramineWorker, folder: Path, into: Path) -> Path:
    """The manifest of `worker`, which is started in `folder`, rendered into `into`."""
    (into / MANIFEST).write_text(render(worker, installed(), folder))
    return into / MANIFEST


def launch_gramine(backend: str, folder: Path, manifest: Path, timeout: float = 300.0) -> Started:
    """Start the worker of `manifest` in `folder`, to which the manifest's paths are relative."""
    name = str(manifest.resolve().with_suffix(""))
    return _started([backend, name], folder, (), timeout)


def _started(
    command: Sequence[str], folder: Path | None, pass_fds: Sequence[int], timeout: float
) -> Started:
    """Start `command` and wait until it has called back and said its token."""
    token = secrets.token_bytes(TOKEN_BYTES)
    with listen() as door:
        port = door.getsockname()[1]
        environment = {
            **os.environ,
            **ENVIRONMENT,
            PORT_VARIABLE: str(port),
            TOKEN_VARIABLE: token.hex(),
        }
        log = tempfile.TemporaryFile()  # noqa: SIM115, lives as long as the worker
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return Started(process, _called_back(door, process, log, token, timeout), log)
        except BaseException:
            process.kill()
            process.wait()
            raise


def _called_back(
    door: socket.socket,
    process: subprocess.Popen[bytes],
    log: IO[bytes],
    token: bytes,
    timeout: float,
) -> Control:
    door.settimeout(0.2)
    waited = 0.0
    while waited < timeout:
        try:
            sock, _ = door.accept()
        except TimeoutError:
            waited += 0.2
            if process.poll() is not None:
                last = _read(log).strip().splitlines()[-1:] or ["it said nothing"]
                raise BackendError(f"the worker ended at its start: {last[0][:300]}") from None
            continue
        sock.settimeout(10.0)
        try:
            if receive_exactly(sock, TOKEN_BYTES) == token:
                return Control(sock)
        except (OSError, ValueError):
            pass
        sock.close()
    raise ServiceError("start", f"the worker did not report within {timeout:.0f} s")
