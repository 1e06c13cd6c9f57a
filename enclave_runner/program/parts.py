"""What a worker is given: a program, its weights, its tensors' shapes and its limits.

Read inside the enclave, so plain Python and strict: whatever does not look as `export` writes it is
refused before anything of it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load

from ...errors import BundleError
from ...preprocessing import Preprocessing
from ..wire.layouts import DTYPES, Layout
from . import sealing
from .programs import Program

SCHEMA = 1
SPEC, PROGRAM, WEIGHTS = "spec.json", "program.json", "weights.safetensors"
# Where Gramine mounts the weights that it decrypts itself.
GRAMINE_WEIGHTS = "/sealed/weights.safetensors"
GRAMINE_KEY = "/dev/attestation/keys/partopt_head"
SEALS = ("none", "aes-256-gcm", "gramine")
MAX_SPEC_BYTES, MAX_PROGRAM_BYTES = 1 << 20, 256 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a worker accepts: images a run, bytes and pixels of an encoded image."""

    batch: int = 1
    image_bytes: int = 16 << 20
    image_pixels: int = 50_000_000


@dataclass(frozen=True, kw_only=True)
class Part:
    """The head or the tail of a bundle.

    ``answers`` are the tensors that come back from the tail: for a tail its own outputs.
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

    def to_json(self) -> str:
        """The spec as JSON."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Part:
        """Read ``spec.json`` in `folder`.

        Raises:
            BundleError: Not what `export` writes.
        """
        raw = bounded(folder / SPEC, MAX_SPEC_BYTES)
        try:
            data = json.loads(raw)
            if data.pop("schema") != SCHEMA:
                raise BundleError(f"{folder.name}/{SPEC} is of another version; export again")
            data["inputs"] = tuple(_layout(e) for e in data["inputs"])
            data["outputs"] = tuple(_layout(e) for e in data["outputs"])
            data["answers"] = tuple(_layout(e) for e in data["answers"])
            data["limits"] = _limits(data["limits"])
            data["preprocessing"] = _preprocessing(data["preprocessing"])
            part = cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"{folder.name}/{SPEC} cannot be read; export again") from None
        if part.role not in ("head", "tail") or part.seal not in SEALS:
            raise BundleError(f"{folder.name}/{SPEC} is no head or tail; export again")
        return part


def bounded(path: Path, most: int) -> bytes:
    """The bytes of a file of at most `most` bytes.

    Raises:
        BundleError: Missing or larger.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise BundleError(
            f"{path.parent.name}/{path.name} cannot be read: {error.strerror}"
        ) from None
    if len(data) > most:
        raise BundleError(f"{path.parent.name}/{path.name} has more than {most} bytes")
    return data


def _whole(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise BundleError(f"a number in {SPEC} is {str(value)[:20]}, not within {low} to {high}")
    return value


def _layout(entry: Any) -> Layout:
    shape = tuple(_whole(n, 1, 1 << 32) for n in entry["shape"])
    if not 1 <= len(shape) <= 8 or entry["dtype"] not in DTYPES or math.prod(shape) > 1 << 32:
        raise BundleError(f"a tensor in {SPEC} has an impossible shape or dtype")
    return Layout(str(entry["name"])[:200], shape, entry["dtype"])


def _limits(entry: Any) -> Limits:
    return Limits(
        batch=_whole(entry["batch"], 1, 1024),
        image_bytes=_whole(entry["image_bytes"], 1, 1 << 30),
        image_pixels=_whole(entry["image_pixels"], 1, 1 << 30),
    )


def _preprocessing(entry: Any) -> Preprocessing | None:
    if entry is None:
        return None
    if entry["interpolation"] not in ("bilinear", "bicubic"):
        raise BundleError(f"{SPEC} names an unknown interpolation")
    mean, std = (tuple(float(v) for v in entry[k]) for k in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3:
        raise BundleError(f"{SPEC} has not three values of mean and std")
    return Preprocessing(
        input_size=_whole(entry["input_size"], 1, 1 << 14),
        resize=_whole(entry["resize"], 1, 1 << 15),
        mean=mean,
        std=std,
        interpolation=entry["interpolation"],
        source=str(entry["source"])[:200],
    )


def program_of(folder: Path, part: Part) -> Program:
    """The program in `folder`, its hash checked before it is parsed."""
    raw = bounded(folder / PROGRAM, MAX_PROGRAM_BYTES)
    if hashlib.sha256(raw).hexdigest() != part.program_sha256:
        raise BundleError(f"{folder.name}/{PROGRAM} was changed since export; export again")
    program = Program.from_json(raw)
    if len(program.inputs) != len(part.inputs) or len(program.outputs) != len(part.outputs):
        raise BundleError(f"{folder.name}/{PROGRAM} does not fit its {SPEC}; export again")
    return program


def load_program(folder: Path, part: Part, key: bytes | None, device: str = "cpu") -> Program:
    """Program with weights, hashes checked before anything is parsed.

    Args:
        folder: The part's folder in the bundle.
        part: Its spec.
        key: The bundle's key where the weights are sealed.
        device: Where the program will run.

    Raises:
        BundleError: Changed files, or the wrong key.
    """
    program = program_of(folder, part)
    weights = _OPEN[part.seal](folder, key or b"")
    if hashlib.sha256(weights).hexdigest() != part.weights_sha256:
        raise BundleError(f"{folder.name}/{WEIGHTS} was changed since export; export again")
    return program.load(load(weights), device)


def _plain(folder: Path, key: bytes) -> bytes:
    return (folder / WEIGHTS).read_bytes()


def _sealed(folder: Path, key: bytes) -> bytes:
    return sealing.unseal((folder / f"{WEIGHTS}.sealed").read_bytes(), key, f"head/{WEIGHTS}")


def _by_gramine(folder: Path, key: bytes) -> bytes:
    """Gramine decrypts while reading, once it has the key (16 bytes, derived from ours)."""
    try:
        Path(GRAMINE_KEY).write_bytes(sealing.derive(key, "gramine encrypted mount", 16))
        return Path(GRAMINE_WEIGHTS).read_bytes()
    except OSError as error:
        raise BundleError(
            f"the encrypted mount does not open ({error.strerror}): the key is wrong, the file was "
            "changed, or this is not Gramine; give the key that export wrote"
        ) from None


_OPEN: dict[str, Callable[[Path, bytes], bytes]] = {
    "none": _plain,
    "aes-256-gcm": _sealed,
    "gramine": _by_gramine,
}
