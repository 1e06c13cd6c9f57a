"""What this machine has for partopt, and what each missing thing costs."""

from __future__ import annotations

import ctypes.util
import shutil
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import torch

from ..cache import cache_dir
from .bundles.gramine import INSTALL
from .presence import detect


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    name: str
    state: Literal["ok", "missing"]
    detail: str


_SHM = "/dev/shm"
# A hand-off takes a few frames of each way: so much holds most cuts at small batches.
_ENOUGH_MIB = 32


def _shared_memory() -> Finding:
    try:
        free = shutil.disk_usage(_SHM).free >> 20
    except OSError:
        return Finding("shared memory", "missing", f"no {_SHM}: serve with --transport tcp")
    if free < _ENOUGH_MIB:
        detail = f"{_SHM} has {free} MiB free: docker run --shm-size, or serve with --transport tcp"
        return Finding("shared memory", "missing", detail)
    return Finding("shared memory", "ok", f"{_SHM}, {free} MiB free")


def _runtime() -> Finding:
    """What `export --engine ort` needs; nothing of it is imported."""
    try:
        known = [f"{name} {metadata.version(name)}" for name in ("onnxruntime", "onnx")]
    except metadata.PackageNotFoundError as error:
        return Finding(
            "ONNX Runtime",
            "missing",
            f"no {error.name}: heads run by PyTorch, slower to start and to run; "
            "pip install 'partopt[ort]'",
        )
    return Finding("ONNX Runtime", "ok", ", ".join(known))


def examine() -> list[Finding]:
    """Look at torch, GPU, SGX, Gramine and the cache; starts nothing that takes long."""
    here = detect()
    gpu = torch.cuda.is_available()
    found = [
        Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        Finding(
            "GPU",
            "ok" if gpu else "missing",
            torch.cuda.get_device_name(0)
            if gpu
            else "tails are timed on the CPU, attacks train slowly, the default budget is quick",
        ),
        Finding(
            "SGX",
            "ok" if here.sgx_device else "missing",
            here.sgx_device
            or (
                "the CPU has it, but no /dev/sgx_enclave: enable it in the firmware, Linux 5.11+"
                if here.cpu_flag
                else "no enclave: latency is measured natively or modelled with --sgx-model"
            ),
        ),
        Finding(
            "Gramine",
            "ok" if here.gramine_direct else "missing",
            here.version
            if here.gramine_direct
            else f"not on PATH: heads run natively, without protection; see {INSTALL}",
        ),
    ]
    library = ctypes.util.find_library("sgx_dcap_quoteverify")
    found.append(
        Finding(
            "quote verification",
            "ok" if library else "missing",
            library or "no libsgx_dcap_quoteverify: this machine cannot check an enclave's quote",
        )
    )
    found += [_runtime(), _shared_memory()]
    cache = cache_dir()
    free = shutil.disk_usage(cache).free / 2**30
    used = sum(f.stat().st_size for f in cache.rglob("*") if f.is_file()) / 2**30
    found.append(Finding("cache", "ok", f"{cache}, {used:.1f} GiB used, {free:.0f} GiB free"))
    weights = torch.hub.get_dir() + "/checkpoints"
    found.append(Finding("downloaded weights", "ok", weights))
    return found
