"""An ONNX file read without the ``onnx`` package: its wire format, in plain Python.

The format is Protocol Buffers' (https://protobuf.dev/programming-guides/encoding); numbers of
fields are those of ``onnx.proto``. Only what `export` writes is understood, and everything else is
refused by name: subgraphs (and with them loops and branches), functions, tensors that lie in other
files, sparse or typed ones, attributes that hold tensors. Tensors stay views of the file's bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...errors import BundleError

MAX_NODES, MAX_TENSORS, MAX_NAME, MAX_LIST, MAX_DIMS = 50_000, 50_000, 500, 4096, 16
# Bytes of an element, by ONNX's number of the type: floats, whole numbers, booleans.
ITEM_BYTES = {1: 4, 2: 1, 3: 1, 5: 2, 6: 4, 7: 8, 9: 1, 11: 8}
FLOAT, INT64, BOOL = 1, 7, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Tensor:
    """A weight: its dimensions, its type and its bytes, a view of the file's."""

    dims: tuple[int, ...]
    type: int
    raw: memoryview


@dataclass(frozen=True)
class Node:
    """One operator: its domain and name, what it takes and makes, and plain attributes."""

    domain: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """What an ONNX file holds.

    Attributes:
        opsets: Version of each domain.
        nodes: In execution order.
        tensors: Weights by name.
        inputs, outputs: Names and types (ONNX's numbers).
    """

    opsets: dict[str, int]
    nodes: tuple[Node, ...]
    tensors: dict[str, Tensor]
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[str, int], ...]


def read_onnx(data: bytes) -> Model:
    """Read the bytes of an ONNX file.

    Raises:
        BundleError: It holds what `export` does not write, or is no such file.
    """
    try:
        return _model(memoryview(data))
    except (ValueError, TypeError, IndexError, struct.error) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(
            f"the ONNX file cannot be read ({type(error).__name__}); export again"
        ) from None


def _refused(what: str) -> BundleError:
    return BundleError(f"the ONNX file holds {what}, which export never writes; export again")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value & ((1 << 64) - 1), at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Number, wire type and value of each field: an int, or a view of bytes."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, kind, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("an unknown wire type")
        if size > end - at:
            raise ValueError("a field that is longer than its message")
        yield number, kind, data[at : at + size]
        at += size


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _text(value: Any) -> str:
    if not isinstance(value, memoryview) or len(value) > MAX_NAME:
        raise ValueError("a name that is none")
    return bytes(value).decode()


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError("a number that is none")
    return _signed(value)


def _several(kind: int, value: Any) -> list[int]:
    """A repeated whole number: packed, or one of many fields."""
    if kind == _VARINT:
        return [_signed(value)]
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(_signed(number))
        if len(found) > MAX_LIST:
            raise ValueError("a list that is too long")
    return found


def _model(data: memoryview) -> Model:
    opsets: dict[str, int] = {}
    graph: memoryview | None = None
    for number, _, value in _fields(data):
        if number == 7 and graph is None:
            graph = value
        elif number == 8:
            domain, version = _opset(value)
            if domain in opsets:
                raise _refused("an operator set twice")
            opsets[domain] = version
        elif number not in (1, 2, 3, 4, 5, 6):  # versions and texts, which nothing reads
            raise _refused(_MODEL.get(number, f"a field {number} of a model"))
    if graph is None:
        raise _refused("no graph")
    nodes, tensors, ends = _graph(graph)
    return Model(opsets, tuple(nodes), tensors, tuple(ends[0]), tuple(ends[1]))


_MODEL = {7: "two graphs", 14: "metadata", 20: "training", 25: "functions", 26: "devices"}
_GRAPH = {13: "shapes of its own", 14: "quantisation", 15: "sparse weights", 16: "metadata"}
_NODE = {8: "an overload", 9: "metadata", 10: "devices"}
_ATTRIBUTE = {
    5: "a tensor as an attribute",
    6: "a subgraph (a loop or a branch)",
    9: "a list of texts as an attribute",
    10: "tensors as an attribute",
    11: "subgraphs (a loop or a branch)",
    21: "an attribute of a function",
    22: "a sparse tensor",
    23: "sparse tensors",
}
_TENSOR = {
    3: "a tensor in pieces",
    4: "a tensor in typed fields",
    5: "a tensor in typed fields",
    6: "a tensor of texts",
    7: "a tensor in typed fields",
    10: "a tensor in typed fields",
    11: "a tensor in typed fields",
    13: "a tensor that lies in another file",
    14: "a tensor that lies in another file",
}


def _opset(data: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, _, value in _fields(data):
        if number == 1:
            domain = _text(value)
        elif number == 2:
            version = _whole(value)
    return domain, version


def _graph(
    data: memoryview,
) -> tuple[list[Node], dict[str, Tensor], tuple[list[tuple[str, int]], list[tuple[str, int]]]]:
    nodes: list[Node] = []
    tensors: dict[str, Tensor] = {}
    inputs: list[tuple[str, int]] = []
    outputs: list[tuple[str, int]] = []
    for number, _, value in _fields(data):
        if number == 1:
            nodes.append(_node(value))
        elif number == 5:
            name, tensor = _tensor(value)
            if name in tensors:
                raise _refused("two tensors of one name")
            tensors[name] = tensor
        elif number in (11, 12):
            (inputs if number == 11 else outputs).append(_end(value))
        elif number not in (2, 10):
            raise _refused(_GRAPH.get(number, f"a field {number} of a graph"))
        if max(len(nodes) - MAX_NODES, len(tensors) - MAX_TENSORS, len(inputs) - 256) > 0:
            raise _refused("too many nodes or tensors")
    return nodes, tensors, (inputs, outputs)


def _node(data: memoryview) -> Node:
    inputs: list[str] = []
    outputs: list[str] = []
    attributes: dict[str, Any] = {}
    domain = op = ""
    for number, _, value in _fields(data):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 4:
            op = _text(value)
        elif number == 5:
            name, found = _attribute(value)
            if name in attributes:
                raise _refused(f"the attribute {name[:40]!r} twice")
            attributes[name] = found
        elif number == 7:
            domain = _text(value)
        elif number not in (3, 6):
            raise _refused(_NODE.get(number, f"a field {number} of a node"))
        if len(inputs) > MAX_LIST or len(outputs) > MAX_LIST:
            raise _refused("a node of too many tensors")
    return Node(
        "" if domain == "ai.onnx" else domain, op, tuple(inputs), tuple(outputs), attributes
    )


def _attribute(data: memoryview) -> tuple[str, Any]:
    name, kind = "", 0
    single: Any = None
    floats: list[float] = []
    ints: list[int] = []
    for number, wire, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            (single,) = struct.unpack("<f", value)
        elif number == 3:
            single = _whole(value)
        elif number == 4:
            single = _text(value)
        elif number == 7:
            if len(value) % 4 or len(floats) > MAX_LIST:
                raise ValueError("a list of numbers that is none")
            floats += struct.unpack(f"<{len(value) // 4}f", value[: 4 * MAX_LIST])
        elif number == 8:
            ints += _several(wire, value)
            if len(ints) > MAX_LIST:
                raise ValueError("a list that is too long")
        elif number == 20:
            kind = _whole(value)
        elif number != 13:
            raise _refused(_ATTRIBUTE.get(number, f"a field {number} of an attribute"))
    values = {1: single, 2: single, 3: single, 6: floats, 7: ints}
    if kind not in values:
        raise _refused("an attribute of an unknown kind")
    if kind == 1:
        return name, 0.0 if single is None else single
    if kind == 2:
        return name, 0 if single is None else single
    return name, values[kind] if kind != 3 else (single or "")


def _tensor(data: memoryview) -> tuple[str, Tensor]:
    name, kind, dims = "", 0, []
    raw = memoryview(b"")
    for number, wire, value in _fields(data):
        if number == 1:
            dims += _several(wire, value)
        elif number == 2:
            kind = _whole(value)
        elif number == 8:
            name = _text(value)
        elif number == 9 and isinstance(value, memoryview):
            raw = value
        elif number != 12:
            raise _refused(_TENSOR.get(number, f"a field {number} of a tensor"))
    if kind not in ITEM_BYTES or len(dims) > MAX_DIMS or any(d < 0 for d in dims):
        raise _refused(f"a tensor of an impossible type or shape ({name[:40]!r})")
    if math.prod(dims) * ITEM_BYTES[kind] != len(raw):
        raise BundleError(
            f"the ONNX file's tensor {name[:40]!r} says that it has {math.prod(dims)} elements, "
            f"and has {len(raw)} bytes; export again"
        )
    return name, Tensor(tuple(dims), kind, raw)


def _end(data: memoryview) -> tuple[str, int]:
    """Name and element type of an input or output; its shape is found, not believed."""
    name, kind = "", 0
    for number, _, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for what, _, inner in _fields(value):
                if what != 1:
                    raise _refused("an input or output that is no tensor")
                kind = next((_whole(v) for n, _, v in _fields(inner) if n == 1), 0)
    if kind not in ITEM_BYTES:
        raise _refused(f"an input or output of an unknown type ({name[:40]!r})")
    return name, kind
