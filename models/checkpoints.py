"""Weights files as people have them: read without unpickling, and the dictionaries they hold.

A training script writes more than a state dict: the model under ``state_dict`` or ``net``, its
moving average under ``ema``, the optimizer's state beside them. `dictionaries` lists every mapping
of names to tensors; which of them is the model's is decided in `weights`.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import WeightsError, nearest

TOP = "."  # the key of a file's own top level
DEEPEST = 4  # dictionaries in dictionaries, at most
_AVERAGED = re.compile(r"(?:^|[._\-])(?:ema|swa|averaged?|avg|polyak|shadow)(?:[._\-]|$)")
_REFUSED = re.compile(r"Unsupported global: GLOBAL (\S+)")


@dataclass(frozen=True)
class Dictionary:
    """Names and tensors at one place of a file.

    Attributes:
        path: Keys that lead to it, joined by dots; empty for the file itself.
        tensors: By name.
        averaged: Whether the file calls it an average over training (EMA, SWA).
    """

    path: str
    tensors: dict[str, torch.Tensor]
    averaged: bool


@dataclass(frozen=True)
class Checkpoint:
    """A file's dictionaries, and where averaged weights lie that have no names."""

    path: Path
    dictionaries: list[Dictionary]
    nameless: list[str]

    def at(self, key: str) -> Dictionary:
        """The dictionary at `key`, or the part of a flat one whose names begin with it.

        Raises:
            WeightsError: There is none.
        """
        wanted = "" if key == TOP else key
        for found in self.dictionaries:
            if found.path == wanted:
                return found
        for found in sorted(self.dictionaries, key=lambda d: -len(d.path)):
            inside = f"{found.path}." if found.path else ""
            part = part_of(found, key.removeprefix(inside)) if key.startswith(inside) else None
            if part is not None:
                return part
        known = [d.path for d in self.dictionaries if d.path]
        has = f"it has {', '.join(known[:8])}" if known else "it has no named ones"
        raise WeightsError(
            f"`weights` got {f'{self.path}#{key}'!r}, but the file has no dictionary "
            f"{key!r}{nearest(key, known)}; {has}"
        )


def part_of(whole: Dictionary, prefix: str) -> Dictionary | None:
    """The tensors of a flat dictionary whose names begin with `prefix`, without it, if any do."""
    start = f"{prefix}."
    inside = {n.removeprefix(start): t for n, t in whole.tensors.items() if n.startswith(start)}
    path = f"{whole.path}.{prefix}" if whole.path else prefix
    return Dictionary(path, inside, is_average(path)) if inside else None


def parted(source: str) -> tuple[Path, str]:
    """``FILE#KEY`` as file and key; the key is empty where there is none."""
    if "#" not in source or Path(source).exists():
        return Path(source), ""
    file, _, key = source.rpartition("#")
    return Path(file), key


def is_average(path: str) -> bool:
    """Whether a dictionary's place calls it an average over training."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", path)
    return _AVERAGED.search(apart.lower()) is not None


def read(path: Path) -> Checkpoint:
    """Read a ``torch.save`` file (``weights_only``) or a safetensors file, by what is in it.

    Raises:
        WeightsError: The file is missing, holds no tensors by name, or would need unpickling.
    """
    content = _content(path)
    found: list[Dictionary] = []
    nameless: list[str] = []
    _walk(content, "", DEEPEST, found, nameless)
    if not found:
        raise WeightsError(
            f"`weights` got {str(path)!r}, which is no state dict: it holds no tensors by name; "
            "save model.state_dict()"
        )
    return Checkpoint(path, found, nameless)


def _walk(
    value: Mapping[Any, Any],
    path: str,
    depth: int,
    found: list[Dictionary],
    nameless: list[str],
) -> None:
    named = {k: v for k, v in value.items() if isinstance(k, str)}
    tensors = {k: v for k, v in named.items() if isinstance(v, torch.Tensor)}
    if tensors:
        averaged = is_average(path) or "n_averaged" in tensors
        found.append(Dictionary(path, tensors, averaged))
    for key, inner in named.items():
        where = f"{path}.{key}" if path else key
        if isinstance(inner, Mapping) and depth:
            _walk(inner, where, depth - 1, found, nameless)
        elif isinstance(inner, (list, tuple)) and is_average(where):
            nameless += [where] if any(isinstance(v, torch.Tensor) for v in inner) else []


def _content(path: Path) -> Mapping[Any, Any]:
    if path.is_dir():
        raise WeightsError(f"`weights` got {str(path)!r}, which is a folder; give a file in it")
    if not path.is_file():
        raise WeightsError(f"`weights` got {str(path)!r}, which does not exist; give a file")
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if not start:
            raise WeightsError(f"`weights` got {str(path)!r}, which is empty; save it again")
        _not_a_program(path)
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
            from safetensors.torch import load_file

            return dict(load_file(path))
        with path.open("rb") as file:  # a path's suffix would count
            state = torch.load(file, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(
            f"`weights` got {str(path)!r}, which cannot be read ({error.strerror}); give another"
        ) from error
    except Exception as error:
        raise WeightsError(
            f"`weights` got {str(path)!r}, which cannot be read without unpickling: {_why(error)}"
        ) from error
    if not isinstance(state, Mapping):
        raise WeightsError(
            f"`weights` got {str(path)!r}, which is no state dict but a {type(state).__name__}; "
            "save model.state_dict()"
        )
    return state


def _not_a_program(path: Path) -> None:
    """Tell TorchScript and torch.export files, which zip archives of ``torch.save`` resemble."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        inner = {name.partition("/")[2] for name in archive.namelist()}
    if "archive_format" in inner:
        raise WeightsError(
            f"`weights` got {str(path)!r}, which is a torch.export program; give it as the model, "
            "with a name that ends in .pt2"
        )
    if "constants.pkl" in inner or any(n.startswith("code/") for n in inner):
        raise WeightsError(
            f"`weights` got {str(path)!r}, which is a TorchScript program; save the state dict of "
            "the model it was made of"
        )


def _why(error: Exception) -> str:
    """What stopped the reader, and what to do."""
    refused = _REFUSED.search(str(error))
    if refused is None:
        return (
            f"it is torn or no weights file ({type(error).__name__}); save a plain state dict or "
            "safetensors"
        )
    name = refused.group(1)
    if name.startswith("numpy"):
        return (
            f"beside tensors it holds numpy values ({name}); where you trust it, load it and save "
            "the state dict alone with torch.save"
        )
    return (
        f"it holds more than tensors ({name}), like a whole model saved by torch.save(model); "
        "where you trust it, load it and save model.state_dict()"
    )
