"""What a worker is given: a program, its weights, its tensors' shapes and its limits.

Read inside the enclave, so plain Python and strict: whatever does not look as `export` writes it is
refused before anything of it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import BundleError
from ...preprocessing import Preprocessing
from ..wire.layouts import DTYPES, Layout
from . import sealing
from .limits import MAX_BYTES, MAX_ELEMENTS
from .plain_json import bounded, parsed

SCHEMA = 3
SPEC, PROGRAM, WEIGHTS = "spec.json", "program.json", "weights.safetensors"
# The file of weights by what runs them; an ONNX model holds them itself.
WEIGHTS_OF = {"torch": WEIGHTS, "ort": "model.onnx"}
ENGINES = tuple(WEIGHTS_OF)
# Where Gramine mounts the weights that it decrypts itself.
GRAMINE_WEIGHTS = "/sealed/weights.safetensors"
GRAMINE_KEY = "/dev/attestation/keys/partopt_head"
SEALS = {"head": ("aes-256-gcm", "gramine"), "tail": ("none",)}
MAX_SPEC_BYTES, MAX_PROGRAM_BYTES, MAX_WEIGHTS_BYTES = 1 << 20, 16 << 20, 16 << 30
MAX_SIDE, MAX_TENSORS, MAX_NAME = 4096, 256, 200


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a worker accepts: images a run, bytes and pixels of an encoded image."""

    batch: int = 1
    image_bytes: int = 16 << 20
    image_pixels: int = 50_000_000


@dataclass(frozen=True, kw_only=True)
class Part:
    """The head or the tail of a bundle.

    ``answers`` are the tensors that come back from the tail: for a tail its own outputs. ``bundle``
    is the identity of the bundle that a head belongs to; a tail is part of that identity.
    ``engine`` is what runs it: ``torch`` or ``ort``.
    """

    role: str
    inputs: tuple[Layout, ...]
    outputs: tuple[Layout, ...]
    answers: tuple[Layout, ...]
    seal: str
    program_sha256: str
    weights_sha256: str
    limits: Limits
    preprocessing: Preprocessing | None
    bundle: str = ""
    engine: str = "torch"

    @property
    def bound(self) -> bytes:
        """What sealed weights are bound to: all that this spec says, of program and bundle too."""
        return hashlib.sha256(self.to_json().encode()).digest()

    def to_json(self) -> str:
        """The spec as JSON."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Part:
        """Read ``spec.json`` in `folder`.

        Raises:
            BundleError: Not what `export` writes.
        """
        name = f"{folder.name}/{SPEC}"
        data = parsed(bounded(folder / SPEC, MAX_SPEC_BYTES), name)
        try:
            if data.pop("schema") != SCHEMA:
                raise BundleError(f"{name} is of another version of partopt; export again")
            data["inputs"] = _layouts(data["inputs"])
            data["outputs"] = _layouts(data["outputs"])
            data["answers"] = _layouts(data["answers"])
            data["limits"] = _limits(data["limits"])
            data["preprocessing"] = _preprocessing(data["preprocessing"])
            part = cls(**data)
            _held(part, folder.name)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"{name} cannot be read; export again") from None
        return part


def _held(part: Part, folder: str) -> None:
    """What one value of a spec says about another."""
    if part.role != folder or part.role not in SEALS or part.seal not in SEALS[part.role]:
        raise BundleError(f"{folder}/{SPEC} is no {folder} as export writes it; export again")
    if part.engine not in ENGINES:
        raise BundleError(f"{folder}/{SPEC} names an engine that there is none of; export again")
    for text in (part.program_sha256, part.weights_sha256, part.bundle or "0" * 64):
        if not re.fullmatch("[0-9a-f]{64}", text):
            raise BundleError(f"{folder}/{SPEC} has a hash that is none; export again")
    tensors = [*part.inputs, *part.outputs, *part.answers]
    if sum(t.nbytes(part.limits.batch) for t in tensors) > MAX_BYTES:
        raise BundleError(f"{folder}/{SPEC} has tensors of more than {MAX_BYTES} bytes in all")
    p = part.preprocessing
    if (p is None) != (part.role == "tail"):
        raise BundleError(f"{folder}/{SPEC} has preprocessing that does not fit; export again")
    if p is not None:
        taken = [(t.shape, t.dtype) for t in part.inputs]
        if taken != [((1, 3, p.input_size, p.input_size), "float32")]:
            raise BundleError(f"{folder}/{SPEC} takes other images than it prepares; export again")


def _whole(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise BundleError(f"a number in {SPEC} is {str(value)[:20]}, not within {low} to {high}")
    return value


def _layouts(entries: Any) -> tuple[Layout, ...]:
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_TENSORS:
        raise BundleError(f"{SPEC} lists no tensors, or more than {MAX_TENSORS}")
    return tuple(_layout(e) for e in entries)


def _layout(entry: Any) -> Layout:
    shape = tuple(_whole(n, 1, MAX_ELEMENTS) for n in entry["shape"])
    fits = 1 <= len(shape) <= 8 and math.prod(shape) <= MAX_ELEMENTS
    if not fits or entry["dtype"] not in DTYPES or type(entry["name"]) is not str:
        raise BundleError(f"a tensor in {SPEC} has an impossible shape or dtype")
    return Layout(entry["name"][:MAX_NAME], shape, entry["dtype"])


def _limits(entry: Any) -> Limits:
    return Limits(
        batch=_whole(entry["batch"], 1, 1024),
        image_bytes=_whole(entry["image_bytes"], 1, 64 << 20),
        image_pixels=_whole(entry["image_pixels"], 1, 100_000_000),
    )


def _preprocessing(entry: Any) -> Preprocessing | None:
    if entry is None:
        return None
    if entry["interpolation"] not in ("bilinear", "bicubic"):
        raise BundleError(f"{SPEC} names an unknown interpolation")
    mean, std = (tuple(float(v) for v in entry[k]) for k in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3:
        raise BundleError(f"{SPEC} has not three values of mean and std")
    if not all(math.isfinite(v) for v in mean) or not all(0 < v < math.inf for v in std):
        raise BundleError(f"{SPEC} has a mean or std that normalises nothing")
    return Preprocessing(
        input_size=_whole(entry["input_size"], 1, MAX_SIDE),
        resize=_whole(entry["resize"], 1, 2 * MAX_SIDE),
        mean=mean,
        std=std,
        interpolation=entry["interpolation"],
        source=str(entry["source"])[:200],
    )


def weights_of(folder: Path, part: Part, key: bytes | None) -> bytes:
    """The part's weights, opened, their hash checked: tensors, or a whole ONNX model.

    Raises:
        BundleError: Changed files, or the wrong key.
    """
    name = WEIGHTS_OF[part.engine]
    weights = _OPEN[part.seal](folder, name, key or b"", part.bound)
    if hashlib.sha256(weights).hexdigest() != part.weights_sha256:
        raise BundleError(f"{folder.name}/{name} was changed since export; export again")
    return weights


def said_of(folder: Path, part: Part) -> bytes:
    """The bytes of ``program.json``, their hash checked before they are parsed."""
    raw = bounded(folder / PROGRAM, MAX_PROGRAM_BYTES)
    if hashlib.sha256(raw).hexdigest() != part.program_sha256:
        raise BundleError(f"{folder.name}/{PROGRAM} was changed since export; export again")
    return raw


def _plain(folder: Path, name: str, key: bytes, bound: bytes) -> bytes:
    return bounded(folder / name, MAX_WEIGHTS_BYTES)


def _sealed(folder: Path, name: str, key: bytes, bound: bytes) -> bytes:
    sealed = bounded(folder / f"{name}.sealed", MAX_WEIGHTS_BYTES)
    return sealing.unseal(sealed, key, f"head/{name}", bound)


def _by_gramine(folder: Path, name: str, key: bytes, bound: bytes) -> bytes:
    """Gramine decrypts while reading, once it has the key (16 bytes, derived from ours)."""
    try:
        Path(GRAMINE_KEY).write_bytes(mount_key(key, bound))
        return bounded(Path(GRAMINE_WEIGHTS), MAX_WEIGHTS_BYTES)
    except (OSError, BundleError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it cannot be read"
        raise BundleError(
            f"the encrypted mount does not open ({reason}): the key is wrong, the bundle was "
            "changed, or this is not Gramine; give the key that export wrote"
        ) from None


def mount_key(key: bytes, bound: bytes) -> bytes:
    """The key of Gramine's encrypted mount: its format binds no more, so the key does."""
    return sealing.derive(key, "gramine encrypted mount", 16, salt=bound)


_OPEN: dict[str, Callable[[Path, str, bytes, bytes], bytes]] = {
    "none": _plain,
    "aes-256-gcm": _sealed,
    "gramine": _by_gramine,
}
