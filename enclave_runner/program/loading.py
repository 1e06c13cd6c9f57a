"""A part of a bundle that torch runs: its program with its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load

from ...errors import BundleError
from .bounds import ghost
from .parts import PROGRAM, SPEC, WEIGHTS, Part, said_of, weights_of
from .programs import Program
from .tensors import DTYPES


def program_of(folder: Path, part: Part) -> Program:
    """The program in `folder`, its hash checked before it is parsed."""
    if part.engine != "torch":
        raise BundleError(f"{folder.name}/{PROGRAM} is no program for torch")
    program = Program.from_json(said_of(folder, part))
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
    tensors = _tensors(folder, weights_of(folder, part, key))
    if tensors.keys() != set(program.constants):
        raise BundleError(
            f"{folder.name}/{WEIGHTS} has other tensors than its program; export again"
        )
    program.load(tensors, device)
    given = program.sized([ghost(t.shape, DTYPES[t.dtype]) for t in part.inputs])
    said = [(t.shape, DTYPES[t.dtype]) for t in part.outputs]
    if [(tuple(t.shape), t.dtype) for t in given] != said:
        raise BundleError(f"{folder.name}/{PROGRAM} gives other tensors than its {SPEC} says")
    return program


def _tensors(folder: Path, weights: bytes) -> dict[str, torch.Tensor]:
    try:
        return load(weights)
    except Exception as error:  # safetensors has one of its own, and torch several
        reason = str(error).strip().splitlines()[:1]
        raise BundleError(
            f"{folder.name}/{WEIGHTS} is no safetensors file ({' '.join(reason)[:120]}); export "
            "again"
        ) from None
