"""``bundle.json``: what is in a bundle, with the hash of every file.

Reading is strict and bounded; hashes are compared before any other file is parsed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...cache import written_whole
from ...errors import BundleError
from ..program.parts import Part

SCHEMA = 1
FILE, LABELS, SPLIT, TEMPLATE = "bundle.json", "labels.json", "split.json", "head.manifest.template"
MAX_BYTES = 4 << 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True, allow_inf_nan=False)


class Crossing(_Strict):
    """A tensor that crosses between the workers; the shape is for one image."""

    name: str
    shape: list[int]
    dtype: str


class Optimisation(_Strict):
    """How the head was made cheaper, and how far its answers are off.

    ``difference`` is the largest absolute difference of the whole model's answer, divided by the
    answer's largest magnitude; ``tolerance`` is what was allowed; 0 is bit-identical.
    """

    switches: list[str] = Field(default_factory=list)
    tolerance: float = 0.0
    difference: float = 0.0
    speedup: float = 1.0
    tried: dict[str, str] = Field(default_factory=dict)


class Footprint(_Strict):
    """Memory of the head worker in bytes, and what the enclave is sized from it."""

    parameters: int
    peak_activations: int
    runtime: int
    libraries: int
    enclave_size: int
    max_threads: int


class Bundle(_Strict):
    """A bundle's contents."""

    schema_: int = Field(default=SCHEMA, alias="schema")
    partopt: str
    model: str
    cut: str
    boundary: list[Crossing]
    answer: list[Crossing]
    payload_bytes: int
    seal: Literal["aes-256-gcm", "gramine"]
    batch: int
    transports: list[str]
    optimisation: Optimisation
    footprint: Footprint
    files: dict[str, str]
    mrenclave: str | None = None
    warnings: list[str] = Field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write ``bundle.json`` into `folder`."""
        with written_whole(folder / FILE) as temporary:
            temporary.write_text(self.model_dump_json(indent=2, by_alias=True) + "\n")


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bundle(folder: Path) -> Bundle:
    """Read ``bundle.json`` and compare the hash of every file that it lists.

    Raises:
        BundleError: Missing, damaged, tampered with, or of another schema.
    """
    path = folder / FILE
    if not path.is_file():
        raise BundleError(
            f"`bundle` got {str(folder)!r}, which holds no {FILE}; run partopt export"
        )
    if path.stat().st_size > MAX_BYTES:
        raise BundleError(f"{str(path)!r} has more than {MAX_BYTES} bytes")
    try:
        raw = json.loads(path.read_bytes())
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            raise BundleError(f"{str(path)!r} is of another version; export again")
        bundle = Bundle.model_validate(raw)
    except (ValueError, RecursionError) as error:
        if isinstance(error, BundleError):
            raise
        detail = ""
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            detail = f" at {'.'.join(map(str, first['loc']))[:80]!r}: {first['msg'].lower()}"
        raise BundleError(f"{str(path)!r} cannot be read{detail}; export again") from None
    for name, wanted in bundle.files.items():
        file = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise BundleError(f"{FILE} lists {name!r}, which lies outside the bundle")
        if not file.is_file() or file.is_symlink() or digest(file) != wanted:
            raise BundleError(f"{name!r} is missing from the bundle or was changed; export again")
    return bundle


def labels_of(folder: Path, bundle: Bundle) -> list[str] | None:
    """The classes' labels, or None where the bundle has none."""
    if LABELS not in bundle.files:
        return None
    found = json.loads((folder / LABELS).read_text())
    if not isinstance(found, list) or any(not isinstance(n, str) for n in found):
        raise BundleError(f"{LABELS!r} is no list of names; export again")
    return found


def parts_of(folder: Path) -> tuple[Part, Part]:
    """Specs of head and tail."""
    return Part.read(folder / "head"), Part.read(folder / "tail")
