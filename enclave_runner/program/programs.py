"""A head or a tail as data: a list of ATen operators beside its tensors, and what runs it.

``torch.export.load`` may unpickle, so a program is stored as JSON. What it may name stands in
`operators`: reading a program cannot run anything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...errors import BundleError
from .bounds import hold
from .operators import Device, Ref, Step, from_data, makes_tensors, operator_named, to_data
from .plain_json import parsed

MAX_NODES = 50_000


@dataclass
class Program:
    """Inputs, constants, steps and outputs. Value indices run inputs, constants, then steps.

    Attributes:
        inputs: Names of the input tensors.
        constants: Names of the tensors that the weights file holds.
        steps: In execution order.
        outputs: Indices of the values that are returned, as a tuple.
        channels_last: Whether constants of four dimensions are laid out channels-last.
    """

    inputs: list[str]
    constants: list[str]
    steps: list[Step]
    outputs: list[int]
    channels_last: bool = False
    tensors: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _sized: set[Any] = field(default_factory=set, repr=False)

    def load(self, tensors: Mapping[str, torch.Tensor], device: str = "cpu") -> Program:
        """Give the program its constants and its device; return it.

        Raises:
            BundleError: A constant is missing.
        """
        missing = [n for n in self.constants if n not in tensors]
        if missing:
            raise BundleError(f"weights lack {missing[0]!r} ({len(missing)} missing); export again")
        self.device = torch.device(device)
        self._sized.clear()
        for name in self.constants:
            tensor = tensors[name].to(self.device)
            if self.channels_last and tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            self.tensors[name] = tensor
        return self

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run on `inputs`; return the outputs."""
        return self.run(inputs)[0]

    def sized(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The outputs for inputs of these shapes, as tensors without memory.

        Raises:
            BundleError: The program does not work on them, or a value of it is too large.
        """
        values = hold([*inputs, *(self.tensors[n] for n in self.constants)], self.steps)
        outputs = [values[i] for i in self.outputs]
        if any(not isinstance(t, torch.Tensor) for t in outputs):
            raise BundleError("program returns what is no tensor")
        return outputs

    def run(
        self,
        inputs: Sequence[torch.Tensor],
        marks: Mapping[int, Any] | None = None,
        clock: Callable[[], Any] | None = None,
    ) -> tuple[tuple[torch.Tensor, ...], dict[int, Any]]:
        """Run, and read `clock` after every step whose index is in `marks`.

        Returns the outputs and ``{step index: clock reading}``.

        Raises:
            BundleError: As `sized`, which goes before the first run on inputs of a shape.
        """
        shapes = tuple((t.shape, t.stride(), t.dtype) for t in inputs)
        if shapes not in self._sized:
            self.sized(inputs)
            self._sized.add(shapes)
        values: list[Any] = [*inputs, *(self.tensors[n] for n in self.constants)]
        values.extend([None] * len(self.steps))
        read: dict[int, Any] = {}

        def get(arg: Any) -> Any:
            kind = type(arg)
            if kind is Ref:
                return values[arg.index]
            if kind is list:
                return [get(a) for a in arg]
            if kind is Device:
                return self.device
            return arg

        with torch.inference_mode():
            for index, step in enumerate(self.steps):
                args = [get(a) for a in step.args]
                kwargs = {k: get(v) for k, v in step.kwargs.items()} if step.kwargs else {}
                values[step.result] = step.call(*args, **kwargs)
                for dead in step.free:
                    values[dead] = None
                if marks is not None and index in marks:
                    read[index] = clock() if clock is not None else None
        return tuple(values[i] for i in self.outputs), read

    def to_json(self) -> str:
        """The program without its tensors."""
        steps = [[s.op, to_data(list(s.args)), to_data(s.kwargs)] for s in self.steps]
        data = {
            "inputs": self.inputs,
            "constants": self.constants,
            "steps": steps,
            "outputs": self.outputs,
            "channels_last": self.channels_last,
        }
        return json.dumps(data, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Program:
        """Read and check a program.

        Raises:
            BundleError: Not a program, or an operator that is not allowed.
        """
        try:
            data = parsed(text, "program")
            inputs, constants = _names(data["inputs"]), _names(data["constants"])
            raw, outputs = data["steps"], data["outputs"]
            if not isinstance(raw, list) or len(raw) > MAX_NODES:
                raise BundleError("program has no list of steps, or too many of them")
            first = len(inputs) + len(constants)
            steps = [_step(entry, first + i) for i, entry in enumerate(raw)]
            if any(type(o) is not int or not 0 <= o < first + len(steps) for o in outputs):
                raise BundleError("program returns a value that it does not have")
            channels_last = data["channels_last"] is True
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(
                f"program cannot be read ({type(error).__name__}); export again"
            ) from (None)
        return cls(inputs, constants, with_frees(steps, outputs, first), outputs, channels_last)


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or any(type(v) is not str for v in value):
        raise BundleError("program has a name that is no text")
    return value


def _step(entry: Any, result: int) -> Step:
    op, args, kwargs = entry
    if type(op) is not str or not isinstance(args, list) or not isinstance(kwargs, dict):
        raise BundleError("program has a step that is no operator with arguments")
    args = [from_data(a, result) for a in args]
    kwargs = {str(k): from_data(v, result) for k, v in kwargs.items()}
    call = operator_named(op)
    if makes_tensors(call) and not isinstance(kwargs.get("device"), Device):
        raise BundleError(f"program has {op!r} on a device of its own")
    return Step(op, call, tuple(args), kwargs, result)


def with_frees(steps: Sequence[Step], outputs: Sequence[int], first: int) -> list[Step]:
    """Note at each step which results are dead after it."""
    last: dict[int, int] = {}
    for i, step in enumerate(steps):
        for index in (*_refs(step.args), *_refs(list(step.kwargs.values())), step.result):
            last[index] = i
    free: dict[int, list[int]] = {}
    for index, i in last.items():
        if index not in outputs and index >= first:
            free.setdefault(i, []).append(index)
    return [
        Step(s.op, s.call, s.args, s.kwargs, s.result, tuple(free.get(i, ())))
        for i, s in enumerate(steps)
    ]


def _refs(args: Sequence[Any]) -> list[int]:
    found: list[int] = []
    for arg in args:
        if type(arg) is Ref:
            found.append(arg.index)
        elif type(arg) in (list, tuple):
            found.extend(_refs(arg))
    return found
