"""Which machine this is: what a reader of times must know of where they were taken."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata

import torch

from ..arguments.numbers import cores
from ..config import Machine
from ..enclave_runner.presence import detect
from ..printable import printable

_LONGEST = 255


def this_machine(name: str | None = None) -> Machine:
    """Describe this machine.

    Args:
        name: What to call it; None takes its host name.
    """
    here = detect()
    called = printable(name or platform.node() or "unnamed")
    return Machine(
        name=called[:_LONGEST],
        system=f"{platform.system()} {platform.release()} {platform.machine()}"[:_LONGEST],
        cpu=(_cpu() or platform.processor() or "unknown CPU")[:_LONGEST],
        cores=cores(),
        memory_bytes=_memory(),
        gpu=torch.cuda.get_device_name(0)[:_LONGEST] if torch.cuda.is_available() else None,
        sgx=here.sgx_device is not None,
        gramine=here.version[:_LONGEST],
        torch=str(torch.__version__)[:64],
        partopt=_version(),
    )


def now() -> str:
    """The time in UTC, to the second, as ISO 8601 writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _cpu() -> str:
    """The processor's name as Linux has it, or an empty string."""
    try:
        with open("/proc/cpuinfo") as file:
            named = (
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            )
            return next(named, "")
    except OSError:
        return ""


def _memory() -> int | None:
    """Physical memory in bytes; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _version() -> str:
    try:
        return metadata.version("partopt")[:64]
    except metadata.PackageNotFoundError:
        return "not installed as a package"
