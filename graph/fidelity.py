"""Whether a traced graph is the model: both run on the same inputs, and compared bit for bit.

The answers are compared, and what every module returned, so that an answer which hardly depends on
the input, or is a class index, hides nothing. Only where `torch.export` rewrote operators may
results differ, by `TOLERANCE` of how much they vary from input to input; a large constant in an
answer makes that no wider.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..errors import TraceError
from .answers import leaves
from .naming import Call, Claim
from .reference import (
    TOLERANCE,
    Record,
    Reference,
    fingerprint,
    once_more,
    outputs,
    same,
    share,
    spread,
    untouched,
)


@dataclass(frozen=True)
class Difference:
    """Where graph and model part, and by how much: a share of the variation between inputs.

    ``where`` is the module whose output differs first, or the place in the answer; ``share`` is
    the largest difference anywhere.
    """

    where: str
    share: float

    @property
    def tolerable(self) -> bool:
        """Whether rounding explains it."""
        return self.share <= TOLERANCE

    def __str__(self) -> str:
        if self.share == math.inf:
            return f"differs from the model first at `{self.where}`"
        return (
            f"differs from the model first at `{self.where}`, by up to {self.share:.1e} of what "
            "values vary by between inputs"
        )


class _Follower(fx.Interpreter):
    """Runs a graph and hands every value that a module returned to `see`."""

    def __init__(self, module: fx.GraphModule, see: Callable[[Call, Any], object]) -> None:
        super().__init__(module)
        self._see = see

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        claims: list[Claim] = n.meta.get("claims", [])
        for claim in claims:
            self._see((claim.path, claim.call), value)
        return value


def compare(
    reference: Reference, module: fx.GraphModule, fixed: int | None, certain: bool = True
) -> Difference | None:
    """Compare a graph with what the model gave; None where they are the same bit for bit.

    Args:
        reference: What the model gave.
        module: The graph.
        fixed: The only batch size that the graph takes, or None.
        certain: Whether the graph knows for certain which values modules returned.

    Returns:
        Where they differ first, at a module in execution order or else in the answer, and the
        largest difference.

    Raises:
        TraceError: The graph does not run on what the model runs on.
    """
    records = [r for r in reference.records if fixed in (None, r.batch)]
    if len(records) < len(reference.records):
        records = [*records, once_more(reference, records[0])]
    seen: dict[Call, int] = {}
    pairs = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for record in records:
            inputs = record.fresh()
            follower = _Follower(module, lambda c, v: seen.setdefault(c, fingerprint(v)))
            run: Callable[..., Any] = follower.run if record.prints else module
            try:
                answer = run(*inputs)
            except Exception as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                raise TraceError(f"the graph fails where the model runs: {lines[0]}") from error
            if not all(map(same, inputs, record.inputs)):
                return Difference("the input, which the graph overwrites", math.inf)
            pairs.append((record, leaves(answer)))
        prints = records[-1].prints
        odd = [call for call, mark in seen.items() if prints.get(call, mark) != mark]
        found = _at_modules(reference, records[-1], module, (odd, certain)) if odd else []
    found += _in_answers(pairs)
    if not found:
        return None
    # Where operators were rewritten, what rounding explains is not where the fault is.
    first = next((d for d in found if certain or not d.tolerable), found[0])
    return Difference(first.where, max(d.share for d in found))


def _in_answers(pairs: Sequence[tuple[Record, list[tuple[str, Any]]]]) -> list[Difference]:
    if any([p for p, _ in r.answer] != [p for p, _ in a] for r, a in pairs):
        return [Difference("answer", math.inf)]
    found = []
    for i, (place, _) in enumerate(pairs[0][0].answer):
        both = [(r.answer[i][1], a[i][1]) for r, a in pairs]
        width = spread([m for m, _ in both])
        worst = max(share(m, g, width) for m, g in both)
        if worst:
            found.append(Difference(f"answer {place}".strip(), worst))
    return found


def _at_modules(
    reference: Reference, record: Record, module: fx.GraphModule, where: tuple[list[Call], bool]
) -> list[Difference]:
    """Compare as numbers what modules returned, where their bits differ."""
    certain = where[1]
    with untouched(reference.model):
        values = outputs(reference.model, reference.call, record.inputs, where[0])
    found: dict[Call, Difference] = {}

    def hold(call: Call, value: Any) -> None:
        mine = values.pop(call, None)
        if mine is None or not (certain or getattr(value, "shape", None) == mine.shape):
            return
        name = call[0] + (f" (call {call[1] + 1})" if call[1] else "")
        found.setdefault(call, Difference(name, share(mine, value, spread([mine]))))

    _Follower(module, hold).run(*record.fresh())
    return [d for d in found.values() if d.share]
