"""What of SGX and Gramine this machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

_DEVICES = ("/dev/sgx_enclave", "/dev/sgx/enclave", "/dev/isgx")
_PROVISION = ("/dev/sgx_provision", "/dev/sgx/provision")


@dataclass(frozen=True)
class Presence:
    """Paths of what was found; None or an empty string where something is missing."""

    sgx_device: str | None
    provision_device: str | None
    cpu_flag: bool
    gramine_direct: str | None
    gramine_sgx: str | None
    version: str


def detect() -> Presence:
    """Look at devices, CPU flags and programs; only ``gramine-direct --version`` is run."""
    direct = shutil.which("gramine-direct")
    return Presence(
        sgx_device=next((d for d in _DEVICES if os.path.exists(d)), None),
        provision_device=next((d for d in _PROVISION if os.path.exists(d)), None),
        cpu_flag=_cpu_has_sgx(),
        gramine_direct=direct,
        gramine_sgx=shutil.which("gramine-sgx"),
        version=_version(direct),
    )


def _cpu_has_sgx() -> bool:
    try:
        with open("/proc/cpuinfo") as file:
            return any(line.startswith("flags") and " sgx " in f"{line.strip()} " for line in file)
    except OSError:
        return False


def _version(program: str | None) -> str:
    if program is None:
        return ""
    try:
        result = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown version"
    return result.stdout.strip().splitlines()[0] if result.stdout.strip() else "unknown version"
