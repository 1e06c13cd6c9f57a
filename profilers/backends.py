"""Which enclave and accelerator backends there are, and which of them this machine has."""

from __future__ import annotations

import torch

from ..errors import BackendError, UsageError
from .instrumented import CudaPass, HostPass, PassFactory

ENCLAVES: dict[str, PassFactory] = {"native": HostPass}
ACCELERATORS: dict[str, PassFactory] = {"cuda": CudaPass, "cpu": HostPass}
# Names that the interface is ready for; profiling inside Gramine is not part of this version.
PLANNED = ("gramine-sgx", "gramine-direct")


def pick_enclave(name: str) -> str:
    """Resolve ``auto`` and check the rest.

    Raises:
        UsageError: Unknown backend.
        BackendError: A backend that cannot be used here.
    """
    if name == "auto":
        return "native"
    if name in PLANNED:
        raise BackendError(
            f"`enclave` got {name!r}, which this version cannot profile in; use 'native', with "
            "--sgx-model to scale its times"
        )
    if name not in ENCLAVES:
        raise UsageError(f"`enclave` got {name!r}; use 'auto' or 'native'")
    return name


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
