"""A whole model for ONNX Runtime out of a head and a tail, to be timed."""

from __future__ import annotations

from .accounting import Accounted


def joined(head: bytes, tail: bytes) -> Accounted:
    """What the head returns is what the tail takes; the one mark lies between them."""
    from onnx import helper, load_model_from_string

    first, second = load_model_from_string(head), load_model_from_string(tail)
    crossing = [o.name for o in first.graph.output]
    names = {i.name: name for i, name in zip(second.graph.input, crossing, strict=True)}

    def of_tail(name: str) -> str:
        return names.get(name, f"t.{name}") if name else ""

    for node in second.graph.node:
        node.input[:] = [of_tail(n) for n in node.input]
        node.output[:] = [of_tail(n) for n in node.output]
    for value in [*second.graph.initializer, *second.graph.output]:
        value.name = of_tail(value.name)
    nodes = [*first.graph.node, *second.graph.node]
    for number, node in enumerate(nodes):
        node.name = f"n{number}"
    graph = helper.make_graph(
        nodes,
        "whole",
        first.graph.input,
        second.graph.output,
        [*first.graph.initializer, *second.graph.initializer],
    )
    sets = {o.domain: o.version for o in [*first.opset_import, *second.opset_import]}
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(d, v) for d, v in sorted(sets.items())],
        ir_version=first.ir_version,
    )
    return Accounted(bytes(model.SerializeToString()), (tuple(range(len(first.graph.node))),))
