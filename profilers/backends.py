"""Which enclave and accelerator backends there are, and which of them this machine has."""

from __future__ import annotations

from functools import partial

import torch

from ..enclave_runner import launcher
from ..errors import BackendError, UsageError
from .instrumented import CudaPass, HostPass, PassFactory, WorkerPass

ENCLAVES: dict[str, PassFactory] = {
    "native": HostPass,
    "gramine-direct": partial(WorkerPass, backend="gramine-direct"),
    "gramine-sgx": partial(WorkerPass, backend="gramine-sgx"),
}
ACCELERATORS: dict[str, PassFactory] = {"cuda": CudaPass, "cpu": HostPass}


def pick_enclave(name: str) -> str:
    """Resolve ``auto`` to the strongest backend there is, and check the rest.

    Raises:
        UsageError: Unknown backend.
        BackendError: A backend that cannot be used here.
    """
    return launcher.resolve_enclave(name)


def pick_accelerator(name: str) -> str:
    """Resolve ``auto`` to ``cuda`` where there is a GPU, else ``cpu``.

    Raises:
        UsageError: Unknown backend.
        BackendError: ``cuda`` without a GPU.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ACCELERATORS:
        raise UsageError(f"`accelerator` got {name!r}; use 'auto', 'cuda' or 'cpu'")
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendError("`accelerator` got 'cuda', but torch sees no GPU; use 'cpu'")
    return name
