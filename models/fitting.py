"""How the names of a weights file fit those of a network: prefixes, wrappers, ties, counters.

They fit if every tensor of the network is there with the same shape, or shares its storage with one
that is, and nothing else is there but counters. A prefix is stripped only where the names do not
fit with it and all of them fit without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

# What torch.compile, FSDP, activation checkpointing and DataParallel put into names.
_WRAPPERS = (
    (),
    ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"),
)
# Batch norm's, thop's and AveragedModel's: no answer depends on them.
_COUNTERS = ("num_batches_tracked", "total_ops", "total_params", "n_averaged")
# Published DenseNet checkpoints are older than the module names of today.
_OLD_DENSENET = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$"
)


@dataclass
class Fit:
    """How a dictionary fits a network.

    Attributes:
        state: Tensors under the network's own names.
        left_out: Counters of the file that the network does not have.
        missing, unknown, shapes: Names that stand in the way.
        untied: Names that are one tensor in the network and differ in the file.
    """

    state: dict[str, torch.Tensor] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    untied: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """All names that stand in the way."""
        return self.missing + self.unknown + self.shapes + self.untied

    def __str__(self) -> str:
        untied = f", {len(self.untied)} not tied as in the model" if self.untied else ""
        return (
            f"{len(self.missing)} tensors are missing, {len(self.unknown)} unknown, "
            f"{len(self.shapes)} of another shape{untied} (first: {', '.join(self.problems[:3])})"
        )


def fit(
    own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], heads: Sequence[str] = ()
) -> Fit:
    """How tensors fit a network, read in the way that stands least in its way.

    Args:
        own: The network's state dict; tied tensors share their storage.
        given: The file's tensors.
        heads: Prefixes of names that the network was built without on purpose.
    """
    best: Fit | None = None
    mates = _ties(own)
    for names in _readings(list(given)):
        known = {n: _renamed(n, own) for n in names}
        tried = _compared(own, {known[n]: given[names[n]] for n in names}, heads, mates)
        if best is None or len(tried.problems) < len(best.problems):
            best = tried
        if not tried.problems:
            break
    assert best is not None
    return best


def _readings(names: list[str]) -> Iterator[dict[str, str]]:
    """Ways to read the names, as new name -> name: as they are, then with ever less before them."""
    for wrappers in _WRAPPERS:
        current = {".".join(p for p in n.split(".") if p not in wrappers): n for n in names}
        while len(current) == len(names):
            yield current
            heads = {n.partition(".")[0] for n in current if not _is_counter(n)}
            if len(heads) != 1 or any("." not in n for n in current if not _is_counter(n)):
                break
            prefix = heads.pop() + "."
            current = {n.removeprefix(prefix): old for n, old in current.items()}


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in _COUNTERS


def _renamed(name: str, own: Mapping[str, Any]) -> str:
    today = _OLD_DENSENET.sub(r"\1\2", name)
    return today if today in own else name


def _ties(own: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """For each name, all names of the same tensor, itself included."""
    by_place: dict[Any, list[str]] = {}
    for name, tensor in own.items():
        place: Any = name
        if tensor.numel() and tensor.layout is torch.strided:
            start = tensor.untyped_storage().data_ptr() if not tensor.is_meta else name
            place = (start, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        by_place.setdefault(place, []).append(name)
    return {name: names for names in by_place.values() for name in names}


def _compared(
    own: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    heads: Sequence[str],
    mates: Mapping[str, list[str]],
) -> Fit:
    found = Fit({n: t for n, t in state.items() if n in own})
    for name in own:
        if not any(mate in state for mate in mates[name]) and not _is_counter(name):
            found.missing.append(name)
        same = [m for m in mates[name] if m in state]
        if name in state and same[0] != name and not equal(state[same[0]], state[name]):
            found.untied.append(name)
    for name in state:
        if name in own:
            found.shapes += [name] if state[name].shape != own[name].shape else []
        elif _is_counter(name):
            found.left_out.append(name)
        elif not name.startswith(tuple(heads)):
            found.unknown.append(name)
    return found


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are of one shape and dtype and hold the same values."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
