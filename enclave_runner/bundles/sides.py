"""The two folders of a bundle: each side's spec, program and weights, the head's sealed."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

from safetensors.torch import save

from ...preprocessing import Preprocessing
from ..program.parts import PROGRAM, SPEC, WEIGHTS_OF, Limits, Part, mount_key
from ..program.programs import Program
from ..program.sealing import seal
from .bundle import sealed_file
from .gramine import run_tool
from .halves import Halves


def write_parts(
    folder: Path, made: Halves, preprocessing: Preprocessing, key: bytes
) -> dict[str, Part]:
    """Write both folders, the head's weights sealed under `key`; return the specs by role."""
    parts = {}
    for role, program in (("head", made.head), ("tail", made.tail)):
        place = folder / role
        place.mkdir()
        text = _said(made, role, program)
        (place / PROGRAM).write_bytes(text)
        weights = weights_of(made, role)
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
            engine=made.engines[role].engine,
        )
        if role == "tail":
            (place / SPEC).write_text(part.to_json())
            (place / WEIGHTS_OF[part.engine]).write_bytes(weights)
            parts[role] = Part.read(place)
        else:
            parts[role] = seal_head(folder, part, weights, key)
    return parts


def seal_head(folder: Path, part: Part, weights: bytes, key: bytes) -> Part:
    """Write the head's spec and seal its weights to it; return the spec as it reads.

    Whoever changes the spec, or what it holds the hash of, has weights that do not open.
    """
    place = folder / "head"
    (place / SPEC).write_text(part.to_json())
    part = Part.read(place)
    if part.seal == "gramine":
        _seal_by_gramine(folder, part, weights, key)
    else:
        sealed = seal(weights, key, f"head/{WEIGHTS_OF[part.engine]}", part.bound)
        (place / sealed_file(part.engine, part.seal)).write_bytes(sealed)
    return part


def weights_of(made: Halves, role: str) -> bytes:
    """A half's weights: an ONNX model, or a file of tensors."""
    if made.engines[role].engine == "ort":
        return made.engines[role].model
    program = made.head if role == "head" else made.tail
    return save({n: t.clone().contiguous() for n, t in program.tensors.items()})


def _said(made: Halves, role: str, program: Program) -> bytes:
    chosen = made.engines[role]
    if chosen.engine == "ort":
        return json.dumps(chosen.said, allow_nan=False).encode()
    return program.to_json().encode()


def _seal_by_gramine(folder: Path, part: Part, weights: bytes, key: bytes) -> None:
    """Let Gramine's tool encrypt; the plain copy lives in memory, readable by us alone."""
    (folder / "head" / sealed_file(part.engine, "aes-256-gcm")).unlink(missing_ok=True)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="partopt-seal-", dir=memory) as hidden:
        wrap, plain = Path(hidden) / "key", Path(hidden) / "plain"
        wrap.write_bytes(mount_key(key, part.bound))
        plain.write_bytes(weights)
        # The tool writes the output path into the file, and Gramine compares it.
        output = f"head/{sealed_file(part.engine, part.seal)}"
        run_tool(
            [
                "gramine-sgx-pf-crypt",
                "encrypt",
                *("-w", str(wrap)),
                *("-i", str(plain), "-o", output),
            ],
            folder,
        )
