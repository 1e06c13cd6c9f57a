"""A whole model for ONNX Runtime, and which of its operators a head that ends at a cut has run.

Operators are fused across cuts. One that a head has begun is counted to it whole: a convolution
takes its time, and what is fused to it next to none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..program.onnx_held import held
from ..program.programs import Program
from .model import lowered
from .optimised import optimised

_VALUE = re.compile(r"\bv\d+_\d+")


@dataclass(frozen=True)
class Accounted:
    """A model whose operators are named n0, n1, ..., and for each mark those of the head."""

    model: bytes
    heads: tuple[tuple[int, ...], ...]

    def shares(self, spent: Sequence[float]) -> list[float]:
        """For each mark the head's share of a pass, from seconds of each operator."""
        total = sum(spent) or 1.0
        return [sum(spent[i] for i in head) / total for head in self.heads]


def accounted(
    program: Program, example: torch.Tensor, dynamic: bool, marks: Sequence[int]
) -> Accounted:
    """`program` for ONNX Runtime, optimised for this machine.

    Args:
        program: The whole model.
        example: An input.
        dynamic: As in `record`.
        marks: Steps after which a cut lies.

    Raises:
        ExportError: An operator cannot be written, or a package is missing.
    """
    plain = lowered(program, [example], dynamic)
    from onnx import load_model_from_string

    proto = load_model_from_string(optimised(plain, "layout"))
    made = {n: list(node.inputs) for node in held(plain).nodes for n in node.outputs}
    ends: dict[str, str] = {}
    begun: list[int] = []
    for number, node in enumerate(proto.graph.node):
        taken = {ends.get(name, name) for name in node.input}
        said = _VALUE.findall(" ".join([node.name, *node.output]))
        last = max(said, key=_place) if said else next(iter(taken))
        begun.append(min(map(_place, _between(last, taken, made)), default=_place(last)))
        ends |= dict.fromkeys(node.output, last)
        node.name = f"n{number}"
    first = len(program.inputs) + len(program.constants)
    heads = tuple(tuple(i for i, b in enumerate(begun) if b <= first + mark) for mark in marks)
    return Accounted(bytes(proto.SerializeToString()), heads)


def _place(name: str) -> int:
    """Which value of the program a name belongs to; 0 for inputs and weights."""
    return int(name[1:].split("_")[0]) if _VALUE.fullmatch(name) else 0


def _between(last: str, taken: Collection[str], made: Mapping[str, Sequence[str]]) -> set[str]:
    """What was computed on the way from `taken` to `last`, before anything was fused."""
    found: set[str] = set()
    left = [last]
    while left:
        name = left.pop()
        if name in made and name not in found and name not in taken:
            found.add(name)
            left += made[name]
    return {name for name in found if _VALUE.fullmatch(name)}
