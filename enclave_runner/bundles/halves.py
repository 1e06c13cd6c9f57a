"""Head and tail of a cut as programs, held against the loaded model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...errors import ExportError, first_line
from ...graph.answers import tensors
from ...graph.build import Cut, LayerGraph
from ...graph.reference import TOLERANCE, random_inputs, share, spread, untouched
from ...graph.splitting import split
from ...images.dead_leaves import dead_leaves
from ...models.load import LoadedModel
from ..lowering.choosing import Chosen, Half, choose, hold_engine
from ..program import optimise as opt
from ..program.programs import Program
from ..program.recording import record
from ..wire.layouts import DTYPES, Layout

# On which an engine is held against the traced program.
IMAGES = 20


@dataclass(frozen=True, kw_only=True)
class Halves:
    """Head and tail of a cut, and what crosses at batch 1.

    Attributes:
        cut: Where they part.
        head, tail: The programs; the head with the switches of `choice`.
        inputs, boundary, answer: What goes in, what crosses, and what comes back.
        batch: Largest batch that they run at.
        choice: How the head was made cheaper.
        engines: What runs head and tail, by role.
        off: How far answers without switches are off the model's, as a share of what these vary by.
    """

    cut: Cut
    head: Program
    tail: Program
    inputs: tuple[Layout, ...]
    boundary: tuple[Layout, ...]
    answer: tuple[Layout, ...]
    batch: int
    choice: opt.Choice
    off: float
    engines: dict[str, Chosen]


def halves(
    loaded: LoadedModel,
    graph: LayerGraph,
    cut: Cut,
    *,
    optimise: str = "none",
    engines: tuple[str, str] = ("torch", "torch"),
    batch: int = 8,
    seed: int = 0,
) -> Halves:
    """Head and tail as programs, compared with the loaded model itself.

    Args:
        loaded: The model.
        graph: Its layer graph.
        cut: Where to part it.
        optimise: ``none``, ``auto`` or switches (see `optimise`).
        engines: ``torch``, ``ort`` or ``auto``, for head and tail.
        batch: Largest batch that the programs must run at, if the model can.
        seed: For the images that they are compared on.

    Raises:
        ExportError: A half is no program, or does not answer as the model does.
    """
    wanted = opt.parse(optimise)
    asked = [hold_engine(o, e) for o, e in zip(("engine", "tail-engine"), engines, strict=True)]
    odd = next((s for s in cut.boundary if s.dtype not in DTYPES), None)
    if odd is not None:
        raise ExportError(
            f"the boundary tensor {odd.name!r} is {odd.dtype}, which cannot cross; cut elsewhere"
        )
    head, tail = split(graph, cut, flat=True)
    sample = torch.zeros((1, *graph.inputs[0].shape[1:]))
    # One image each of another range of values.
    singles = [random_inputs((sample,), 1, seed + i)[0] for i in range(3)]
    truths = [_truth(loaded, image) for image in singles]
    example = singles[0]
    error: ExportError | None = None
    for dynamic in [False] if graph.fixed_batch is not None else [True, False]:
        try:
            first = record(head, [example], dynamic)
            between = first(example)
            second = record(tail, [t.clone() for t in between], dynamic)
            pairs = [(t, second(*first(x))) for t, x in zip(truths, singles, strict=True)]
            answer = pairs[0][1]
            off = _off(pairs)
            if dynamic:
                _grows(between, answer, first, second, example)
                several = torch.cat(singles)
                off = max(off, _off([(_truth(loaded, several), second(*first(several)))]))
            break
        except ExportError as caught:
            error = caught
    else:
        assert error is not None
        raise error
    choice = opt.quickest(head, first, second, example, wanted, dynamic)
    images = generated_pictures(loaded, seed) if asked != ["torch", "torch"] else [example]
    chosen = {
        "head": choose(
            Half(
                plain=first,
                quick=choice.program,
                dynamic=dynamic,
                inputs=[[x] for x in images],
                answers=second,
            ),
            asked[0],
        ),
        "tail": choose(
            Half(
                plain=second,
                quick=second,
                dynamic=dynamic,
                inputs=[[t.contiguous() for t in first(x)] for x in images],
                answers=None,
            ),
            asked[1],
        ),
    }
    return Halves(
        cut=cut,
        head=choice.program,
        tail=second,
        inputs=(Layout.of(first.inputs[0], example),),
        boundary=tuple(Layout.of(s.name, t) for s, t in zip(cut.boundary, between, strict=True)),
        answer=tuple(Layout.of(f"answer_{i}", t) for i, t in enumerate(answer)),
        batch=batch if dynamic else 1,
        choice=choice,
        off=off,
        engines=chosen,
    )


def generated_pictures(loaded: LoadedModel, seed: int) -> list[torch.Tensor]:
    """Images as the model gets them, one each; generated, with a photo's statistics."""
    how = loaded.preprocessing
    pictures = dead_leaves(IMAGES, how.input_size, seed)
    return [torch.from_numpy(how.prepared(p)) for p in pictures]


def _truth(loaded: LoadedModel, images: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of the loaded model's own answer; a single number has one dimension."""
    try:
        with torch.no_grad(), untouched(loaded.module):
            answer = loaded.module(images.clone(), **loaded.arguments)
    except Exception as error:
        raise ExportError(
            f"the model fails on a batch of {len(images)}: {first_line(error)}"
        ) from error
    return [t.reshape(1) if t.ndim == 0 else t.clone() for t in tensors(answer)]


def _off(pairs: Sequence[tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]]) -> float:
    """How far programs are off the model: a share of what its answers vary by; 0 is no bit.

    Raises:
        ExportError: More than rounding explains.
    """
    worst = 0.0
    if any(len(t) != len(a) for t, a in pairs):
        raise ExportError("head and tail answer with other tensors than the model")
    for i in range(len(pairs[0][0])):
        width = spread([truth[i] for truth, _ in pairs])
        worst = max([worst, *(share(truth[i], answer[i], width) for truth, answer in pairs)])
    if worst > TOLERANCE:
        raise ExportError(
            f"head and tail answer otherwise than the model, by {worst:.1e} of what its answers "
            "vary by between images; cut elsewhere"
        )
    return worst


def _grows(
    between: Sequence[torch.Tensor],
    answer: Sequence[torch.Tensor],
    head: Program,
    tail: Program,
    example: torch.Tensor,
) -> None:
    """Check that every tensor that crosses grows with the batch in its first dimension."""
    two = head(torch.cat([example, example]))
    for one, both in zip([*between, *answer], [*two, *tail(*two)], strict=True):
        if one.ndim == 0 or tuple(both.shape) != (2 * one.shape[0], *one.shape[1:]):
            raise ExportError("a tensor that crosses does not grow with the batch")
