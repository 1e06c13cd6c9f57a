"""The tensors of an answer, whatever they are packed in: tuples, dictionaries, data classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx


def leaves(answer: Any) -> list[tuple[str, Any]]:
    """Everything in `answer` that is no container, each with its place, e.g. ``logits`` or ``1.0``.

    Containers are mappings, sequences and data classes; a bare tensor has the place "".
    """
    return list(_walk(answer, ""))


def tensors(answer: Any) -> list[torch.Tensor]:
    """The tensors of `answer` in order."""
    return [v for _, v in leaves(answer) if isinstance(v, torch.Tensor)]


def plain(answer: Any) -> Any:
    """`answer` with dictionaries, lists and tuples alone for containers."""
    parts = _parts(answer)
    if parts is None:
        return answer
    if isinstance(answer, (tuple, list)):
        kind = list if isinstance(answer, list) else tuple
        return kind(plain(part) for _, part in parts)
    return {key: plain(part) for key, part in parts}


def _parts(value: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    return None


def _walk(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    parts = _parts(value)
    if parts is None:
        yield place, value
        return
    for key, part in parts:
        yield from _walk(part, f"{place}.{key}" if place else str(key))


def is_packing(node: fx.Node) -> bool:
    """Whether `node` only puts other values into a container."""
    return node.op == "call_function" and (
        isinstance(node.target, type)
        and (dataclasses.is_dataclass(node.target) or issubclass(node.target, (dict, list, tuple)))
    )


def answer_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The nodes whose values the graph returns, in the order of `leaves`, packing undone."""
    output = next(n for n in graph.nodes if n.op == "output")
    return list(_nodes(output.args[0]))


def _nodes(value: Any) -> Iterator[fx.Node]:
    if isinstance(value, fx.Node):
        if is_packing(value):
            yield from _nodes((value.args, value.kwargs))
        else:
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _nodes(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _nodes(part)
