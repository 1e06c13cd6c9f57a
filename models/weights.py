"""The weights of a file in a network: which dictionary of the file, converted how, and finite.

Where an average over training (EMA, SWA) fits beside the plain weights it is taken, as training
scripts do at evaluation, and the result says so. Where nothing tells which is run, none is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import WeightsError
from .checkpoints import TOP, Checkpoint, Dictionary, part_of, parted, read
from .fitting import Fit, equal, fit

# Published checkpoints of these have heads that are used in training only.
_AUXILIARY_HEADS = {"GoogLeNet": ("aux1.", "aux2."), "Inception3": ("AuxLogits.",)}


@dataclass(frozen=True)
class Loaded:
    """What was loaded: how results name it, and what the user must know."""

    label: str
    notes: list[str]


def load(module: nn.Module, source: str) -> Loaded:
    """Load weights into `module`, every tensor of it.

    Args:
        module: Gets the values; its dtypes stay.
        source: A file, or ``FILE#KEY`` for the dictionary of it that the dotted key leads to.

    Raises:
        WeightsError: Unreadable, of another model, not finite, or with several dictionaries that
            fit and no way to tell which of them the author runs.
    """
    path, key = parted(source)
    checkpoint = read(path)
    own: dict[str, torch.Tensor] = module.state_dict()
    heads = _AUXILIARY_HEADS.get(type(module).__name__, ())
    places = [checkpoint.at(key)] if key else checkpoint.dictionaries
    fits = [(d, fit(own, d.tensors, heads)) for d in places]
    chosen, found, note = _choose(checkpoint, fits, own, key)
    several = key or sum(bool(f.state) for _, f in fits) > 1
    label = f"file: {path.name}" + (f"#{chosen.path or TOP}" if several else "")
    return Loaded(label, [*note, *_fill(module, own, found, source)])


def _choose(
    checkpoint: Checkpoint,
    fits: list[tuple[Dictionary, Fit]],
    own: Mapping[str, torch.Tensor],
    key: str,
) -> tuple[Dictionary, Fit, list[str]]:
    """The dictionary to load, its fit and what must be said of the choice.

    Raises:
        WeightsError: None fits, or several do and none or more than one is an average.
    """
    good = _distinct([(d, f) for d, f in fits if not f.problems])
    if not good:
        raise _misfit(checkpoint, fits, own, key)
    averages = [(d, f) for d, f in good if d.averaged]
    raw = [d.path for d, _ in good if not d.averaged]
    several = averages or good
    if len(several) > 1:
        paths = [d.path for d, _ in several]
        raise WeightsError(
            f"`weights` got {str(checkpoint.path)!r}, in which {_listed(paths)} fit and differ; "
            f"name the one that is run: {checkpoint.path}#{paths[0] or TOP}"
        )
    chosen, found = several[0]
    if not averages and not key:
        _no_lost_average(checkpoint, fits, chosen)
    if not averages or not raw:
        return chosen, found, []
    note = (
        f"weights: the file holds {_listed([chosen.path, *raw])}; {_listed([chosen.path])}, an "
        "average over training, was taken, as training scripts do at evaluation; "
        f"--weights {checkpoint.path}#{raw[0] or TOP} takes the other"
    )
    return chosen, found, [note]


def _listed(paths: Sequence[str]) -> str:
    return " and ".join(f"`{p}`" if p else "the file's top level" for p in paths)


def _distinct(fits: list[tuple[Dictionary, Fit]]) -> list[tuple[Dictionary, Fit]]:
    """Without those whose values came before; an average that equals the rest is none."""
    kept: list[tuple[Dictionary, Fit]] = []
    for each, found in fits:
        for _, other in kept:
            same = found.state.keys() == other.state.keys()
            if same and all(equal(found.state[n], other.state[n]) for n in other.state):
                break
        else:
            kept.append((each, found))
    return kept


def _no_lost_average(
    checkpoint: Checkpoint, fits: list[tuple[Dictionary, Fit]], chosen: Dictionary
) -> None:
    """Raise where the file holds an average of this network that cannot be loaded as it is."""
    partly = [d.path for d, f in fits if d.averaged and f.state and f.problems]
    lost = [*partly, *checkpoint.nameless]
    if lost and not chosen.averaged:
        why = next((str(f) for d, f in fits if d.path == lost[0]), "its tensors have no names")
        other = f"{checkpoint.path}#{chosen.path or TOP}"
        raise WeightsError(
            f"`weights` got {str(checkpoint.path)!r}, whose average over training `{lost[0]}` does "
            f"not fit ({why}) beside {_listed([chosen.path])} that does; save the one that is run "
            f"as a state dict, or take the other with {other}"
        )


def _misfit(
    checkpoint: Checkpoint,
    fits: list[tuple[Dictionary, Fit]],
    own: Mapping[str, torch.Tensor],
    key: str,
) -> WeightsError:
    """The error for a file of which nothing fits; it names a part that would."""
    best, found = min(fits, key=lambda pair: (-len(pair[1].state), len(pair[1].problems)))
    heads = list(dict.fromkeys(n.partition(".")[0] for n in best.tensors if "." in n))
    inner = [part_of(best, head) for head in heads[:16]]
    parts = [d.path for d in inner if d is not None and not fit(own, d.tensors).problems]
    hint = f"; its part {_listed(parts)} fits: {checkpoint.path}#{parts[0]}" if parts else ""
    where = f" at `{best.path}`" if best.path else ""
    source = f"{checkpoint.path}#{key}" if key else str(checkpoint.path)
    return WeightsError(
        f"`weights` got {source!r}, which is of another model{where}: {found}{hint}"
    )


def _fill(module: nn.Module, own: Mapping[str, torch.Tensor], found: Fit, source: str) -> list[str]:
    """Copy the values in; return what the user must know.

    Raises:
        WeightsError: A tensor cannot be converted, or is not finite.
    """
    casts: dict[tuple[torch.dtype, torch.dtype], int] = {}
    for name, tensor in found.state.items():
        wanted = own[name].dtype
        if not _castable(tensor, wanted):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise WeightsError(
                f"`weights` got {source!r}, whose `{name}` ({kind}) cannot be had as "
                f"{str(wanted).removeprefix('torch.')}; save the weights as float32"
            )
        if tensor.dtype != wanted:
            casts[tensor.dtype, wanted] = casts.get((tensor.dtype, wanted), 0) + 1
    try:
        module.load_state_dict({**own, **found.state})
    except Exception as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise WeightsError(f"`weights` got {source!r}, which cannot be loaded: {first}") from error
    _hold(module, found, source)
    notes = [
        f"weights: {count} tensors are {str(a).removeprefix('torch.')} in the file and "
        f"{str(b).removeprefix('torch.')} in the model"
        for (a, b), count in casts.items()
    ]
    if found.left_out:
        notes.append(
            f"weights: {len(found.left_out)} counters in the file that the model does not have "
            f"were left out (first: {found.left_out[0]})"
        )
    return notes


def _castable(tensor: torch.Tensor, wanted: torch.dtype) -> bool:
    """Whether the values mean the same in another dtype, up to rounding."""
    if tensor.is_quantized or tensor.layout is not torch.strided or tensor.is_meta:
        return False
    if tensor.dtype == wanted or wanted.is_floating_point:
        return not tensor.is_complex() or wanted.is_complex
    if tensor.is_complex() or wanted.is_complex:
        return not tensor.is_complex()
    return torch.equal(tensor.to(wanted).to(torch.float64), tensor.to(torch.float64))


def _hold(module: nn.Module, found: Fit, source: str) -> None:
    """Raise where the network does not hold the file's values, or they are no finite numbers."""
    held: dict[str, torch.Tensor] = module.state_dict()
    parameters = {n for n, _ in module.named_parameters(remove_duplicate=False)}
    broken = []
    for name, tensor in found.state.items():
        value = held[name]
        if value.is_floating_point():
            # A buffer may hold infinities on purpose, as attention masks do.
            whole = torch.isfinite(value) if name in parameters else ~torch.isnan(value)
            if not bool(whole.all()):
                broken.append(name)
                continue
        if not torch.equal(value, tensor.to(value.dtype)):
            raise WeightsError(
                f"`weights` got {source!r}, but the model changes `{name}` while it is loaded; "
                "load the weights in a factory of your own"
            )
    if broken:
        raise WeightsError(
            f"`weights` got {source!r}, which holds values that are no finite numbers in "
            f"{len(broken)} tensors (first: {broken[0]}); take a checkpoint from before training "
            "diverged"
        )
