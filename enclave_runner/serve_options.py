"""How a bundle is served."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from .launcher import How
from .wire.addresses import is_loopback
from .wire.transport import NAMES


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How to serve a bundle.

    Attributes:
        enclave: ``auto``, ``gramine-sgx``, ``gramine-direct`` or ``native``.
        device: ``cpu`` or ``cuda`` for the tail.
        transport: ``shm``, ``tcp`` or ``file``.
        threads: Compute threads of each worker.
        batch: Most images a run.
        in_flight: Frames between head and tail, at most.
        queue: Requests that may wait; more are answered "busy".
        host, port: Where clients connect; port 0 takes any.
        timeout: Seconds until a worker that says nothing, or a tail that does not answer, is taken
            for hung and started again.
        start_timeout: Seconds that a worker's start may take, and then its loading.
        clients: Public keys of which a client must have one; none: anybody, on loopback alone.
        accept_tcb: States of an SGX platform that do beside "OK".
        logs: Folder for what the workers print, ``head.log`` and ``tail.log``; or None.
    """

    enclave: str = "auto"
    device: str = "cpu"
    transport: str = "shm"
    threads: int = 1
    batch: int = 1
    in_flight: int = 2
    queue: int = 16
    host: str = "127.0.0.1"
    port: int = 0
    timeout: float = 60.0
    start_timeout: float = 300.0
    clients: tuple[str, ...] = ()
    accept_tcb: tuple[str, ...] = ()
    logs: Path | None = None

    def __post_init__(self) -> None:
        if self.transport not in NAMES:
            raise UsageError(f"`transport` got {self.transport!r}; use {', '.join(NAMES)}")
        if not self.clients and not is_loopback(self.host):
            raise UsageError(
                f"`listen` got the host {self.host!r}, where anybody could connect; name who may "
                "with --clients FILE"
            )
        for name, most in (("threads", 1024), ("batch", 1024), ("in_flight", 64), ("queue", 4096)):
            if not 1 <= getattr(self, name) <= most:
                raise UsageError(f"`{name}` got {getattr(self, name)}; use 1 to {most}")
        for name in ("timeout", "start_timeout"):
            if not 0 < getattr(self, name) <= 3600:
                raise UsageError(f"`{name}` got {getattr(self, name)}; use seconds up to 3600")

    def how(self, name: str, ending: threading.Event | None = None) -> How:
        """How to start the worker `name`."""
        return How(
            log=None if self.logs is None else self.logs / f"{name}.log",
            timeout=self.start_timeout,
            ending=ending or threading.Event(),
        )
