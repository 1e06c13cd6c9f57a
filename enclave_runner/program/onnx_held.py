"""Is an ONNX file one that export writes, and how large do its values get? Before it is run.

The counterpart of `bounds` for programs: operators outside the list (`onnx_rules`) are refused by
name, every value's shape is worked out, and with it the memory that a run takes, before ONNX
Runtime sees a byte.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence

from ...errors import BundleError
from .limits import MAX_BYTES, MAX_DIMS, MAX_ELEMENTS, MAX_LIVE_BYTES
from .onnx_file import FLOAT, INT64, ITEM_BYTES, Model, Node, Tensor, read_onnx
from .onnx_rules import MS, NCHWC, RULES, Scaled, Unfit, Val

OPSETS = {"": 20, MS: 1, NCHWC: 1}
_FEW = 64


def held(data: bytes) -> Model:
    """An ONNX file, once it is known to name allowed operators alone, each value once.

    Raises:
        BundleError: It does not; the operator is named.
    """
    model = read_onnx(data)
    for domain, version in model.opsets.items():
        if OPSETS.get(domain) != version:
            raise BundleError(
                f"the ONNX file uses operators of {domain[:60] or 'ai.onnx'!r}, version {version}, "
                "which export never writes; export again"
            )
    known = {name for name, _ in model.inputs}
    if known & model.tensors.keys() or len(known) != len(model.inputs):
        raise BundleError("the ONNX file gives two values one name; export again")
    known |= model.tensors.keys()
    for node in model.nodes:
        if (node.domain, node.op) not in RULES or node.domain not in model.opsets:
            raise BundleError(
                f"the ONNX file uses the operator {named(node)}, which is not allowed; export again"
            )
        if any(name and name not in known for name in node.inputs):
            raise BundleError(f"the ONNX file's {named(node)} takes what is not there yet")
        for name in node.outputs:
            if name in known:
                raise BundleError("the ONNX file gives two values one name; export again")
            known |= {name} if name else set()
    if any(name not in known for name, _ in model.outputs):
        raise BundleError("the ONNX file returns what it does not have; export again")
    return model


def named(node: Node) -> str:
    """An operator as it is shown."""
    return repr(f"{node.domain}.{node.op}"[:100].lstrip("."))


def sizes(model: Model, inputs: Mapping[str, Sequence[int]]) -> list[tuple[tuple[int, ...], int]]:
    """Shape and type of each output, for inputs of these shapes.

    Raises:
        BundleError: Other inputs, a node that does not work on them, or more memory than a
            program may take.
    """
    values: dict[str, Val] = {name: _stored(tensor) for name, tensor in model.tensors.items()}
    if {name for name, _ in model.inputs} != inputs.keys():
        raise BundleError("the ONNX file takes other inputs than its spec says; export again")
    for name, kind in model.inputs:
        values[name] = Val(tuple(inputs[name]), kind)
    last = {name: i for i, node in enumerate(model.nodes) for name in node.inputs}
    kept = {name for name, _ in model.outputs} | model.tensors.keys()
    live = sum(_weight(v, n) for n, v in values.items())
    for i, node in enumerate(model.nodes):
        for name, value in zip(node.outputs, _made(node, values), strict=False):
            if name:
                values[name] = value
                live += _weight(value, named(node))
        if live > MAX_LIVE_BYTES:
            raise BundleError(
                f"the ONNX file needs more than {MAX_LIVE_BYTES} bytes at its {named(node)}"
            )
        for name in {*node.inputs, *node.outputs}:
            if name and last.get(name, i) == i and name not in kept:
                live -= _weight(values[name], name)
    return [(values[name].shape, values[name].type) for name, _ in model.outputs]


def _made(node: Node, values: Mapping[str, Val]) -> list[Val]:
    ins = [values[name] if name else None for name in node.inputs]
    try:
        if not ins or ins[0] is None:
            raise Unfit("no input")
        found = RULES[node.domain, node.op](node, ins)
    except (Unfit, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        why = str(error) if isinstance(error, Unfit) else type(error).__name__
        raise BundleError(
            f"the ONNX file's {named(node)} does not fit its tensors ({why}); export again"
        ) from None
    if len(found) < len([name for name in node.outputs if name]):
        raise BundleError(f"the ONNX file's {named(node)} has too many outputs; export again")
    return found


def _weight(value: Val, where: str) -> int:
    elements = math.prod(value.shape)
    size = elements * ITEM_BYTES.get(value.type, 1 << 62)
    fits = len(value.shape) <= MAX_DIMS and elements <= MAX_ELEMENTS and size <= MAX_BYTES
    if not fits or min(value.shape, default=0) < 0:
        raise BundleError(
            f"the ONNX file has a tensor of shape {value.shape} at {where}; the most is {MAX_DIMS} "
            f"dimensions and {MAX_BYTES} bytes"
        )
    return size


def _stored(tensor: Tensor) -> Val:
    few = math.prod(tensor.dims) <= _FEW
    if few and tensor.type == INT64:
        ints = struct.unpack(f"<{len(tensor.raw) // 8}q", tensor.raw)
        return Val(tensor.dims, tensor.type, ints)
    if few and tensor.type == FLOAT:
        factors = struct.unpack(f"<{len(tensor.raw) // 4}f", tensor.raw)
        return Scaled(tensor.dims, tensor.type, None, factors)
    return Val(tensor.dims, tensor.type)
