"""The two folders of a bundle: each side's spec, program and weights, the head's sealed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save

from ...preprocessing import Preprocessing
from ..program.parts import PROGRAM, SPEC, WEIGHTS, Limits, Part
from ..program.programs import Program
from ..program.sealing import derive, seal
from .gramine import run_tool
from .halves import Halves

SEALED = f"{WEIGHTS}.sealed"
GRAMINE_SEALED = f"{WEIGHTS}.pf"


def write_parts(
    folder: Path, made: Halves, preprocessing: Preprocessing, key: bytes
) -> dict[str, Part]:
    """Write both folders, the head's weights sealed under `key`; return the specs by role."""
    parts = {}
    for role, program in (("head", made.head), ("tail", made.tail)):
        place = folder / role
        place.mkdir()
        text = program.to_json().encode()
        (place / PROGRAM).write_bytes(text)
        weights = _weights(program)
        part = Part(
            role=role,
            inputs=made.inputs if role == "head" else made.boundary,
            outputs=made.boundary if role == "head" else made.answer,
            answers=made.answer,
            seal="aes-256-gcm" if role == "head" else "none",
            program_sha256=hashlib.sha256(text).hexdigest(),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            limits=Limits(batch=made.batch),
            preprocessing=preprocessing if role == "head" else None,
        )
        (place / SPEC).write_text(part.to_json())
        if role == "tail":
            (place / WEIGHTS).write_bytes(weights)
        else:
            (place / SEALED).write_bytes(seal(weights, key, f"head/{WEIGHTS}"))
        parts[role] = part
    return parts


def _weights(program: Program) -> bytes:
    return save({n: t.clone().contiguous() for n, t in program.tensors.items()})


def reseal_by_gramine(folder: Path, part: Part, program: Program, key: bytes) -> Part:
    """Let Gramine's tool encrypt; the plain copy lives in memory, readable by us alone.

    Return the head's new spec.
    """
    weights = _weights(program)
    (folder / "head" / SEALED).unlink()
    part = replace(part, seal="gramine")
    (folder / "head" / SPEC).write_text(part.to_json())
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="partopt-seal-", dir=memory) as hidden:
        wrap, plain = Path(hidden) / "key", Path(hidden) / "plain"
        wrap.write_bytes(derive(key, "gramine encrypted mount", 16))
        plain.write_bytes(weights)
        # The tool writes the output path into the file, and Gramine compares it.
        output = f"head/{GRAMINE_SEALED}"
        run_tool(
            [
                "gramine-sgx-pf-crypt",
                "encrypt",
                *("-w", str(wrap)),
                *("-i", str(plain), "-o", output),
            ],
            folder,
        )
    return part
