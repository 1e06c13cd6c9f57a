"""What a model itself answers to random inputs: the truth that graphs are held against.

The model is run at two batch sizes, twice. One that answers differently to the same input has
something random in it (a dropout that is on in eval mode), or changes itself, and is refused: no
attack on another draw of it would mean anything. Afterwards the model is as it was.
"""

from __future__ import annotations

import contextlib
import copy
import math
import traceback
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import TraceError
from .answers import leaves
from .naming import Call

Inputs = tuple[torch.Tensor, ...]
See = Callable[[Call, Any], None]
# How far rounding may move a value: this share of the largest difference between two inputs'.
TOLERANCE = 1e-3
KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class Record:
    """One input and what the model made of it.

    Attributes:
        inputs: The inputs.
        answer: The answer's parts, each with its place (see `answers.leaves`).
        prints: Fingerprints of what every call of a module returned; empty where not taken.
    """

    inputs: Inputs
    answer: list[tuple[str, Any]]
    prints: Mapping[Call, int] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Number of examples."""
        return int(self.inputs[0].shape[0])

    def fresh(self) -> Inputs:
        """Copies of the inputs, which a model may overwrite."""
        return tuple(t.clone() for t in self.inputs)


@dataclass(frozen=True)
class Reference:
    """A model, how it is called, and what it answered.

    Attributes:
        model: The network.
        call: Called with the inputs.
        records: What it answered, the last with fingerprints.
        steady: False where two runs on one input differ by rounding.
    """

    model: nn.Module
    call: Callable[..., Any]
    records: tuple[Record, ...]
    steady: bool = True


def random_inputs(example: Inputs, batch: int, seed: int) -> Inputs:
    """Inputs of other values, at another batch size; rows differ in their range of values.

    Rows are normal with a standard deviation of 1, uniform in [0, 1], or normal with 3, in turn,
    beginning with the one that `seed` says; whole numbers are drawn from the example's range.
    """
    generator = torch.Generator().manual_seed(seed)
    return tuple(_random(t, batch, seed, generator) for t in example)


def _random(
    tensor: torch.Tensor, batch: int, first: int, generator: torch.Generator
) -> torch.Tensor:
    shape = (batch, *tensor.shape[1:]) if tensor.ndim else ()
    if tensor.dtype is torch.bool:
        return torch.rand(shape, generator=generator).to(tensor.device) > 0.5
    if not (tensor.is_floating_point() or tensor.is_complex()):
        low, high = (int(tensor.min()), int(tensor.max())) if tensor.numel() else (0, 0)
        drawn = torch.randint(low, high + 1, shape, generator=generator)
        return drawn.to(device=tensor.device, dtype=tensor.dtype)
    drawn = torch.randn(shape, generator=generator)
    for row in range(batch if shape else 0):
        if (row + first) % 3 == 1:
            drawn[row].uniform_(generator=generator)
        elif (row + first) % 3 == 2:
            drawn[row] *= 3
    return drawn.to(device=tensor.device, dtype=tensor.dtype)


def look(model: nn.Module, example: Inputs, call: Callable[..., Any] | None = None) -> Reference:
    """Run `model`, in eval mode, on random inputs of the example's shape.

    Args:
        model: The network; it is as it was when this returns.
        example: Gives shapes and dtypes; it is not overwritten.
        call: How it is called; default: the model itself.

    Raises:
        TraceError: It does not run on such an input, or answers differently to the same one.
    """
    call, size = call or model, int(example[0].shape[0]) if example[0].ndim else 1
    with torch.no_grad(), torch.random.fork_rng(devices=[]), untouched(model):
        small = random_inputs(example, size, 0)
        first = Record(small, _run_first(model, call, small))
        try:
            second = _recorded_run(model, call, random_inputs(example, size + 1, 1))
        except Exception:  # a batch size written into the model
            second = _recorded_run(model, call, random_inputs(example, size, 1))
        steady = True
        for record, again in (
            (second, _recorded_run(model, call, second.inputs)),
            (first, Record(small, _answer(call, first))),
        ):
            odd = [c for c, p in record.prints.items() if again.prints.get(c) != p]
            pairs = zip(record.answer, again.answer, strict=False)
            if not odd and all(same(a, b) for (_, a), (_, b) in pairs):
                continue
            if not _rounding(model, call, (record, again), odd):
                raise TraceError(_unsteady(model, call, record, odd))
            steady = False
    second = second if steady else replace(second, prints={})
    return Reference(model, call, (first, second), steady)


def once_more(reference: Reference, record: Record) -> Record:
    """Another input of the size of `record`'s, with the model's answer and fingerprints."""
    with untouched(reference.model):
        inputs = random_inputs(record.inputs, record.batch, 2)
        made = _recorded_run(reference.model, reference.call, inputs)
    return made if reference.steady else replace(made, prints={})


def _run_first(model: nn.Module, call: Callable[..., Any], inputs: Inputs) -> list[tuple[str, Any]]:
    try:
        return _answer(call, Record(inputs, []))
    except Exception as error:
        shapes = " and ".join("x".join(map(str, t.shape)) for t in inputs)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise TraceError(
            f"`model` {type(model).__name__} fails on an input of shape {shapes}: {lines[0][:200]}"
        ) from error


def _answer(call: Callable[..., Any], record: Record) -> list[tuple[str, Any]]:
    """The answer's parts as copies, which a later run cannot overwrite."""
    return [
        (place, v.detach().clone() if isinstance(v, torch.Tensor) else v)
        for place, v in leaves(call(*record.fresh()))
    ]


def _recorded_run(model: nn.Module, call: Callable[..., Any], inputs: Inputs) -> Record:
    prints: dict[Call, int] = {}

    def note(which: Call, value: Any) -> None:
        prints[which] = fingerprint(value)

    with recorded(model, note):
        answer = _answer(call, Record(inputs, []))
    return Record(inputs, answer, prints)


def _rounding(
    model: nn.Module, call: Callable[..., Any], runs: tuple[Record, Record], odd: Sequence[Call]
) -> bool:
    """Whether two runs on one input agree but for rounding, in their modules too."""
    pairs = [(a, b) for (_, a), (_, b) in zip(runs[0].answer, runs[1].answer, strict=True)]
    if odd:
        one, two = (outputs(model, call, runs[0].inputs, odd) for _ in range(2))
        pairs += [(value, two.get(which)) for which, value in one.items()]
    return all(share(a, b, spread([a])) <= TOLERANCE for a, b in pairs)


def outputs(
    model: nn.Module, call: Callable[..., Any], inputs: Inputs, wanted: Sequence[Call]
) -> dict[Call, torch.Tensor]:
    """What some calls of modules return, the first gigabyte of it."""
    found: dict[Call, torch.Tensor] = {}
    room = KEPT_BYTES

    def keep(which: Call, value: Any) -> None:
        nonlocal room
        if which in chosen and isinstance(value, torch.Tensor) and room > 0:
            found[which] = value.detach().clone()
            room -= value.numel() * value.element_size()

    chosen = set(wanted)
    with recorded(model, keep):
        call(*Record(inputs, []).fresh())
    return found


@contextlib.contextmanager
def recorded(model: nn.Module, see: See) -> Iterator[None]:
    """Call `see` with every call of a submodule of `model` and what it returned."""
    paths = {id(m): path for path, m in model.named_modules() if path}
    calls: Counter[str] = Counter()
    plain = nn.Module.__call__

    def watched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        path = paths.get(id(module))
        if path is None:
            return plain(module, *args, **kwargs)
        call = (path, calls[path])
        calls[path] += 1
        value = plain(module, *args, **kwargs)
        see(call, value)
        return value

    # As torch.fx does it: hooks would run before the modules' own, and switch fast paths off.
    nn.Module.__call__ = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = plain  # type: ignore[method-assign]


def fingerprint(value: Any) -> int:
    """A checksum of the bytes of every tensor in `value`."""
    print_ = 0
    for _, part in leaves(value):
        if isinstance(part, torch.Tensor) and part.layout is torch.strided:
            dense = part.detach().resolve_conj().resolve_neg().cpu().contiguous()
            raw = dense.view(-1).view(torch.uint8) if dense.numel() else dense.new_empty(0).byte()
            print_ = zlib.crc32(raw.numpy().data, print_)
    return print_


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back whatever running or tracing the model changes: tensors, attributes, containers."""
    saved = [(m, dict(m.__dict__)) for m in model.modules()]
    inside = [
        (value, copy.copy(value))
        for _, attributes in saved
        for value in attributes.values()
        if type(value) in (dict, OrderedDict, list, set)
    ]
    tensors = {
        id(t): (t, t.detach().clone())
        for _, attributes in saved
        for value in attributes.values()
        for t in (value.values() if isinstance(value, dict) else [value])
        if isinstance(t, torch.Tensor) and not t.is_meta
    }
    try:
        yield
    finally:
        for module, attributes in saved:
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for container, before in inside:
            if type(container) is list:
                container[:] = before
            elif container != before or type(container) is not set:
                container.clear()
                container.update(before)
        with torch.no_grad():
            for tensor, before in tensors.values():
                if not same(tensor, before):
                    tensor.copy_(before)


class _Draws(TorchFunctionMode):
    """Notes the first function that takes random numbers, and the line that called it."""

    def __init__(self) -> None:
        super().__init__()
        self.found = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = torch.get_rng_state()
        value = func(*args, **(kwargs or {}))
        if not self.found and not torch.equal(before, torch.get_rng_state()):
            frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename]
            frames = [f for f in frames if f.filename != __file__]
            self.found = f"`{getattr(func, '__name__', func)}`"
            if frames:
                line = (frames[-1].line or "").strip()
                self.found += f" at {frames[-1].filename}:{frames[-1].lineno} (`{line}`)"
        return value


def _unsteady(
    model: nn.Module, call: Callable[..., Any], record: Record, odd: Sequence[Call]
) -> str:
    """Say why two answers to one input differ."""
    name = type(model).__name__
    where = f" (module `{odd[0][0]}` first)" if odd else ""
    states = {n: t.clone() for n, t in model.state_dict().items()}
    state = torch.get_rng_state()
    call(*record.fresh())
    written = [n for n, t in model.state_dict().items() if not same(t, states[n])]
    torch.set_rng_state(state)
    with _Draws() as draws:
        call(*record.fresh())
    if draws.found:
        return (
            f"`model` {name} is random in eval mode: {draws.found} draws new numbers in every "
            "run, so that no attack on it says anything of the next run; give a dropout "
            "`training=self.training`, or take the line out"
        )
    if written:
        return (
            f"`model` {name} answers differently each time: it writes to its own `{written[0]}` "
            "while it runs; do that in training only"
        )
    return (
        f"`model` {name} answers the same input differently in two runs{where}; "
        "take out what is random or kept between runs"
    )


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal bit for bit (but for the sign of zero and the kind of NaN)."""
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b) and bool(a == b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if torch.equal(a, b):
        return True
    if a.is_complex():
        return same(torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj()))
    if not a.is_floating_point() or not torch.equal(a.isnan(), b.isnan()):
        return False
    keep = ~a.isnan()
    return torch.equal(a[keep], b[keep])


def share(a: Any, b: Any, width: float) -> float:
    """Largest difference of two values as a share of `width`; infinite where no rounding is."""
    if same(a, b):
        return 0.0
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return math.inf
    if a.dtype != b.dtype or a.shape != b.shape:
        return math.inf
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    if not a.is_floating_point():
        return math.inf
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()) or not same(a[~finite], b[~finite]):
        return math.inf
    off = float((a[finite].double() - b[finite].double()).abs().max())
    return off / width if width > 0 else math.inf


def spread(values: Sequence[Any]) -> float:
    """Largest difference between rows of tensors: how much a value varies with the input."""
    rows = [
        row
        for v in values
        if isinstance(v, torch.Tensor) and v.ndim and v.numel() and not v.is_complex()
        for row in v.double().nan_to_num(0, 0, 0).unbind(0)
    ]
    found = [float((r - rows[0]).abs().max()) for r in rows[1:] if r.shape == rows[0].shape]
    return max(found, default=0.0)


__all__ = ["TOLERANCE", "Record", "Reference", "look", "same", "share", "spread", "untouched"]
