"""``bundle.json``: what is in a bundle, with the hash of every file.

A bundle carries data alone, and may be somebody else's. Reading is strict and bounded: its files
are those of `FILES` and no others, none is a link, and hashes are compared before any is parsed.
The identity covers everything else, stands in the head's spec, and is bound to the seal of the
head's weights: what was changed and hashed afresh does not open.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...cache import written_whole
from ...errors import BundleError
from ..program.parts import (
    MAX_PROGRAM_BYTES,
    MAX_SPEC_BYTES,
    MAX_WEIGHTS_BYTES,
    PROGRAM,
    SPEC,
    WEIGHTS,
    WEIGHTS_OF,
    Part,
)
from ..program.plain_json import bounded, parsed

SCHEMA = 3
FILE, LABELS, SPLIT, NEEDS = "bundle.json", "labels.json", "split.json", "enclave.json"
README, MANIFEST, SIGSTRUCT = "README.md", "head.manifest.sgx", "head.sig"
MODULES = "head.modules"
UNITS = ("partopt-head@.service", "partopt-tail@.service")
SEALED = {"aes-256-gcm": f"{WEIGHTS}.sealed", "gramine": f"{WEIGHTS}.pf"}


def sealed_file(engine: str, seal: str) -> str:
    """Name of a head's sealed weights."""
    return WEIGHTS_OF[engine] + {"aes-256-gcm": ".sealed", "gramine": ".pf"}[seal]


_SEALED = [sealed_file(engine, seal) for engine in WEIGHTS_OF for seal in SEALED]
MAX_BYTES = 4 << 20
# Every file that a bundle may have, and its most bytes.
FILES = {
    **{f"{role}/{SPEC}": MAX_SPEC_BYTES for role in ("head", "tail")},
    **{f"{role}/{PROGRAM}": MAX_PROGRAM_BYTES for role in ("head", "tail")},
    **{f"head/{name}": MAX_WEIGHTS_BYTES for name in _SEALED},
    **{f"tail/{name}": MAX_WEIGHTS_BYTES for name in WEIGHTS_OF.values()},
    **dict.fromkeys((LABELS, README, NEEDS), MAX_BYTES),
    SPLIT: 16 << 20,
    **{f"systemd/{unit}": 1 << 16 for unit in UNITS},
    MANIFEST: 16 << 20,
    SIGSTRUCT: 1 << 16,
    MODULES: 256 << 20,
}
# Those that come later or hold the identity themselves; all others are part of it.
UNBOUND = {f"head/{SPEC}", *(f"head/{n}" for n in _SEALED), MANIFEST, SIGSTRUCT, MODULES}
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


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


class EngineUse(_Strict):
    """What runs a half, and how far it is from the program that was traced.

    ``differences``: for each tensor that it gives, the largest absolute difference over `images`
    generated images, as a share of the tensor's standard deviation. ``speedup`` is against the
    program in torch; ``tried`` says what else was measured, or why it was not taken.
    """

    name: Literal["torch", "ort"] = "torch"
    level: Literal["", "layout", "extended"] = ""
    speedup: float = 1.0
    images: int = 0
    differences: dict[str, float] = Field(default_factory=dict)
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
    head_engine: EngineUse = Field(default_factory=EngineUse)
    tail_engine: EngineUse = Field(default_factory=EngineUse)
    footprint: Footprint
    files: dict[str, Digest]
    identity: Digest = "0" * 64
    mrenclave: Digest | None = None
    warnings: list[str] = Field(default_factory=list)

    def identified(self) -> str:
        """The identity: SHA-256 over what this says and the hash of every file but `UNBOUND`."""
        said = self.model_dump(mode="json", exclude={"files", "identity", "mrenclave"})
        files = {n: h for n, h in self.files.items() if n not in UNBOUND}
        text = json.dumps([said, files], sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(b"partopt bundle " + text.encode()).hexdigest()

    def expected(self) -> set[str]:
        """The files that it has to have."""
        sealed = sealed_file(self.head_engine.name, self.seal)
        head = {f"head/{n}" for n in (SPEC, PROGRAM, sealed)}
        tail = {f"tail/{n}" for n in (SPEC, PROGRAM, WEIGHTS_OF[self.tail_engine.name])}
        signed = {MANIFEST, SIGSTRUCT, MODULES} if self.mrenclave is not None else set()
        return {*head, *tail, SPLIT, NEEDS, README, *(f"systemd/{u}" for u in UNITS), *signed}

    def write(self, folder: Path) -> None:
        """Write ``bundle.json`` into `folder`."""
        with written_whole(folder / FILE) as temporary:
            temporary.write_text(self.model_dump_json(indent=2, by_alias=True) + "\n")


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bundle(folder: Path) -> Bundle:
    """Read ``bundle.json`` and compare the hash of every file of the bundle.

    Raises:
        BundleError: Missing, damaged, tampered with, or of another schema.
    """
    bundle = _said(folder)
    _all_listed(bundle)
    for name, wanted in bundle.files.items():
        if _digest_within(folder, name) != wanted:
            raise BundleError(f"{name!r} is missing from the bundle or was changed; export again")
    head, tail = parts_of(folder)
    if (head.engine, tail.engine) != (bundle.head_engine.name, bundle.tail_engine.name):
        raise BundleError(f"{FILE} and head/{SPEC} are of two bundles; export again")
    named = head.bundle == bundle.identity == bundle.identified()
    if not named or head.seal != bundle.seal or head.limits.batch != bundle.batch:
        raise BundleError(f"{FILE} and head/{SPEC} are of two bundles; export again")
    for said, part in ((bundle.boundary, head.outputs), (bundle.answer, head.answers)):
        if [(t.name, tuple(t.shape), t.dtype) for t in said] != [
            (t.name, t.shape, t.dtype) for t in part
        ]:
            raise BundleError(f"{FILE} lists other tensors than head/{SPEC}; export again")
    return bundle


def _said(folder: Path) -> Bundle:
    path = folder / FILE
    if not path.is_file():
        raise BundleError(
            f"`bundle` got {str(folder)!r}, which holds no {FILE}; run partopt export"
        )
    if path.is_symlink():
        raise BundleError(f"{FILE!r} is a link; a bundle holds files alone")
    raw = parsed(bounded(path, MAX_BYTES), str(path))
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise BundleError(f"{str(path)!r} is of another version of partopt; export again")
    try:
        return Bundle.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        detail = f" at {'.'.join(map(str, first['loc']))[:80]!r}: {first['msg'].lower()}"
        raise BundleError(f"{str(path)!r} cannot be read{detail}; export again") from None


def _all_listed(bundle: Bundle) -> None:
    """Raise unless every file is listed that has to be there, and no other."""
    expected, listed = bundle.expected(), set(bundle.files)
    if lacking := sorted(expected - listed):
        raise BundleError(f"{FILE} does not list {lacking[0]!r}; export again")
    if strange := sorted(listed - expected - {LABELS}):
        raise BundleError(f"{FILE} lists {strange[0]!r}, which is no file of a bundle")


def _digest_within(folder: Path, name: str) -> str | None:
    """SHA-256 of a file of the bundle; None if it is none, lies behind a link or is too large."""
    place = folder
    for part in Path(name).parts:
        place = place / part
        try:
            found = os.lstat(place)
        except OSError:
            return None
        if stat.S_ISLNK(found.st_mode):
            raise BundleError(f"{name!r} lies behind a link; a bundle holds files alone")
    if not stat.S_ISREG(found.st_mode) or found.st_size > FILES[name]:
        return None
    return digest(place)


def labels_of(folder: Path, bundle: Bundle) -> list[str] | None:
    """The classes' labels, or None where the bundle has none."""
    if LABELS not in bundle.files:
        return None
    found = parsed(bounded(folder / LABELS, MAX_BYTES), LABELS)
    if not isinstance(found, list) or any(not isinstance(n, str) for n in found):
        raise BundleError(f"{LABELS!r} is no list of names; export again")
    return found


def parts_of(folder: Path) -> tuple[Part, Part]:
    """Specs of head and tail.

    Raises:
        BundleError: One cannot be read, or they do not belong together.
    """
    head, tail = Part.read(folder / "head"), Part.read(folder / "tail")
    mine = head.outputs, head.answers, head.answers, head.limits
    if mine != (tail.inputs, tail.outputs, tail.answers, tail.limits):
        raise BundleError(f"head/{SPEC} and tail/{SPEC} do not fit together; export again")
    return head, tail
