"""Start a worker: natively, or inside Gramine with or without SGX. One way for all who need one."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BackendError, ServiceError, UsageError
from .bundles.archive import NAME, archived
from .bundles.bundle import read_bundle
from .bundles.gramine import INSTALL, installed
from .bundles.manifest import ENVIRONMENT, GramineWorker, render
from .bundles.needs import worker_of
from .bundles.signing import hold_signed
from .output import Output
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
    output: Output

    def said(self) -> str:
        """The last of what the worker printed."""
        return self.output.said()

    def stop(self, patience: float = 5.0) -> bool:
        """Hang up, then wait, then kill; whether that last was needed."""
        self.control.close()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()  # also one that was stopped, or hangs in a driver
            self.process.wait()
            return True
        finally:
            self.output.close()
        return False


@dataclass(frozen=True, kw_only=True)
class How:
    """How a worker is started.

    Attributes:
        log: File that its output is appended to, or None.
        timeout: Seconds until a worker that does not report is given up.
        ending: Once set, nobody needs the worker any more.
    """

    log: Path | None = None
    timeout: float = 300.0
    ending: threading.Event = field(default_factory=threading.Event)


def launch_python(
    module: str, *arguments: str, pass_fds: Sequence[int] = (), how: How | None = None
) -> Started:
    """Start ``python -m partopt.MODULE ARGUMENTS`` as an ordinary process."""
    command = [sys.executable, "-I", "-B", "-m", f"{_PACKAGE}.{module}", *arguments]
    return _started(_Command(command, None, pass_fds), how or How())


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
    archive = archived(worker.files)
    place = into.resolve() / NAME
    place.write_bytes(archive.data)
    (into / MANIFEST).write_text(render(worker, installed(), folder, (str(place), archive)))
    return into / MANIFEST


def launch_gramine(backend: str, folder: Path, manifest: Path, how: How | None = None) -> Started:
    """Start the worker of `manifest` in `folder`, to which the manifest's paths are relative."""
    name = str(manifest.resolve().with_suffix(""))
    return _started(_Command([backend, name], folder, ()), how or How())


@dataclass(frozen=True)
class _Command:
    words: Sequence[str]
    folder: Path | None
    pass_fds: Sequence[int]


def _started(command: _Command, how: How) -> Started:
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
        process = subprocess.Popen(
            command.words,
            cwd=command.folder,
            env=environment,
            pass_fds=command.pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            output = Output(process.stdout, how.log)
            return Started(process, _called_back(door, process, output, token, how), output)
        except BaseException:
            process.kill()
            process.wait()
            raise


def _called_back(
    door: socket.socket,
    process: subprocess.Popen[bytes],
    output: Output,
    token: bytes,
    how: How,
) -> Control:
    door.settimeout(0.2)
    end = time.monotonic() + how.timeout
    while time.monotonic() < end and not how.ending.is_set():
        try:
            sock, _ = door.accept()
        except TimeoutError:
            if process.poll() is not None:
                raise BackendError(f"the worker ended at its start: {output.last_line()}") from None
            continue
        sock.settimeout(10.0)
        try:
            if receive_exactly(sock, TOKEN_BYTES) == token:
                return Control(sock)
        except (OSError, ValueError):
            pass
        sock.close()
    raise ServiceError("start", f"the worker did not report within {how.timeout:.0f} s")
