"""Programs made and rearranged, outside: recorded from a traced module, joined, moved."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ...errors import BundleError, ExportError, first_line
from .operators import SIZE_NAMES, Device, Ref, Step, operator_named, to_data
from .programs import Program, with_frees


def record(module: fx.GraphModule, example: Sequence[torch.Tensor], dynamic: bool) -> Program:
    """Turn a traced module into a program, constants loaded.

    Args:
        module: A head, a tail or a whole model; returns a tensor or a tuple of tensors.
        example: Inputs, first dimension the batch.
        dynamic: Whether the program must run at other batch sizes than the example's.

    Raises:
        ExportError: The module uses more than listed ATen operators, or values that are too large.
    """
    program = _from_export(exported(module, example, dynamic))
    try:
        program.sized(example)
    except BundleError as error:
        raise ExportError(f"{error}; cut elsewhere") from None
    return program


def exported(
    module: torch.nn.Module, example: Sequence[torch.Tensor], dynamic: bool
) -> torch.export.ExportedProgram:
    """`module` as ``torch.export`` writes it, without operators that write to their arguments.

    Raises:
        ExportError: It cannot be exported.
    """
    shapes = None
    if dynamic:
        example = [torch.cat([t, t]) if t.shape[0] == 1 else t for t in example]
        auto = {0: torch.export.Dim.AUTO}
        shapes = tuple(dict(auto) for _ in example)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                module, tuple(example), dynamic_shapes=shapes, strict=False
            )
            if any(_mutates(n) for n in program.graph.nodes):
                program = program.run_decompositions({})
    except Exception as error:
        raise ExportError(
            f"torch.export could not export the module: {first_line(error)}"
        ) from error
    return program


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _from_export(exported: torch.export.ExportedProgram) -> Program:
    signature = exported.graph_signature
    tensors: dict[str, torch.Tensor] = {}
    held: dict[str, str] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    placeholders = [n for n in exported.graph.nodes if n.op == "placeholder"]
    users = [n for n in placeholders if n.name not in held]
    constants = [n for n in placeholders if n.name in held and n.users]
    for node in constants:
        name = held[node.name]
        source = exported.state_dict if name in exported.state_dict else exported.constants
        tensors[name] = source[name].detach()
    index = {node: i for i, node in enumerate([*users, *constants])}
    first = len(index)
    steps: list[Step] = []

    def arg(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return Ref(index[value])
        if isinstance(value, (list, tuple)):
            return [arg(v) for v in value]
        if isinstance(value, torch.device):
            return Device()
        if isinstance(value, (torch.SymInt, torch.SymFloat)):
            raise ExportError("a size of the module is not plain; cut elsewhere")
        return value

    outputs: list[int] = []
    for node in exported.graph.nodes:
        if node.op == "output":
            outputs = [index[n] for n in node.args[0]]
        elif node.op == "call_function" and not is_check(node):
            op = _name_of(node)
            result = first + len(steps)
            args = tuple(arg(a) for a in node.args)
            kwargs = {k: arg(v) for k, v in node.kwargs.items()}
            steps.append(Step(op, operator_named(op), args, kwargs, result))
            index[node] = result
        elif node.op not in ("placeholder", "call_function"):
            raise ExportError(
                f"the module holds {node.op} {node.target}, which no program can hold"
            )
    names = [n.name for n in users]
    program = Program(
        names, [held[n.name] for n in constants], with_frees(steps, outputs, first), outputs
    )
    to_data([[list(s.args), s.kwargs] for s in steps])  # raises what could not be stored
    return program.load(tensors)


def is_check(node: fx.Node) -> bool:
    """Whether the node holds a guard of the exporter's, which gives nothing."""
    name = str(node.target)
    return not node.users and ("assert" in name or "sym_constrain" in name or "_guards" in name)


def _name_of(node: fx.Node) -> str:
    if node.target in SIZE_NAMES:
        return f"size.{SIZE_NAMES[node.target]}"
    if isinstance(node.target, torch._ops.OpOverload):
        name = str(node.target)
        try:
            operator_named(name)
        except BundleError as error:
            raise ExportError(f"{error}; cut elsewhere") from None
        return name
    raise ExportError(f"the module calls {node.target}, which is no ATen operator; cut elsewhere")


def join(head: Program, tail: Program) -> Program:
    """The whole model from its two halves: what the head returns is what the tail takes."""
    # Both may have a constant of one name; it need not be the same one.
    names = {n: f"tail.{n}" if n in head.tensors else n for n in tail.constants}
    constants = [*head.constants, *names.values()]
    first = len(head.inputs) + len(constants)
    heads, tails = len(head.constants), len(tail.constants)
    own = len(head.inputs) + heads

    def of_head(index: int) -> int:
        return index if index < own else index + tails

    outputs = [of_head(i) for i in head.outputs]

    def of_tail(index: int) -> int:
        if index < len(tail.inputs):
            return outputs[index]
        if index < len(tail.inputs) + tails:
            return own + index - len(tail.inputs)
        return index - len(tail.inputs) - tails + first + len(head.steps)

    steps = [*(moved(s, of_head) for s in head.steps), *(moved(s, of_tail) for s in tail.steps)]
    ends = [of_tail(i) for i in tail.outputs]
    whole = Program(head.inputs, constants, with_frees(steps, ends, first), ends, False)
    whole.tensors = {**head.tensors, **{names[n]: t for n, t in tail.tensors.items()}}
    return whole


def moved(step: Step, place: Callable[[int], int]) -> Step:
    """`step` with every value index mapped by `place`; frees are to be found anew."""

    def at(arg: Any) -> Any:
        if isinstance(arg, Ref):
            return Ref(place(arg.index))
        return [at(a) for a in arg] if isinstance(arg, list) else arg

    args = tuple(at(a) for a in step.args)
    kwargs = {k: at(v) for k, v in step.kwargs.items()}
    return Step(step.op, step.call, args, kwargs, place(step.result))
