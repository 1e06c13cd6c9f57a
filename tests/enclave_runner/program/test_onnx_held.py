"""An ONNX file that export did not write is refused before anything of it is run."""

from __future__ import annotations

import math
import random
import tracemalloc

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from partopt.enclave_runner.lowering.model import lowered
from partopt.enclave_runner.lowering.optimised import optimised
from partopt.enclave_runner.program.onnx_file import read_onnx
from partopt.enclave_runner.program.onnx_held import OPSETS, held, sizes
from partopt.enclave_runner.program.onnx_rules import RULES
from partopt.enclave_runner.program.recording import record
from partopt.errors import BundleError

FLOAT = TensorProto.FLOAT
X = helper.make_tensor_value_info("x0", FLOAT, ["batch", 3, 8, 8])
Y = helper.make_tensor_value_info("y", FLOAT, None)


def stored(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def model(*nodes, tensors=(), domains=(), **more) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "head", [X], [Y], list(tensors))
    opsets = [helper.make_opsetid("", OPSETS[""]), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, **more)


def good() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    return model(helper.make_node("Conv", ["x0", "w"], ["y"]), tensors=[weight])


def node(op, *inputs, outputs=("y",), **attributes):
    return helper.make_node(op, ["x0", *inputs], list(outputs), **attributes)


def outside() -> onnx.ModelProto:
    found = good()
    tensor = found.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    return found


def claimed(*dims: int) -> onnx.ModelProto:
    found = good()
    del found.graph.initializer[0].dims[:]
    found.graph.initializer[0].dims.extend(dims)
    return found


def looped() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, [])],
    )
    return model(node("Loop", body=body))


def branched() -> onnx.ModelProto:
    part = helper.make_graph([helper.make_node("Identity", ["x0"], ["z"])], "then", [], [Y])
    return model(node("If", then_branch=part, else_branch=part))


def function() -> onnx.ModelProto:
    found = good()
    found.functions.append(
        helper.make_function(
            "own", "f", ["a"], ["b"], [helper.make_node("Identity", ["a"], ["b"])], []
        )
    )
    return found


def typed() -> onnx.ModelProto:
    found = good()
    found.graph.initializer[0].ClearField("raw_data")
    found.graph.initializer[0].float_data.extend([1.0] * 108)
    return found


def with_tensor_attribute() -> onnx.ModelProto:
    value = numpy_helper.from_array(np.ones(2, np.float32))
    return model(helper.make_node("Constant", [], ["c"], value=value), node("Identity"))


REFUSED = {
    "a custom operator": (
        model(node("Mine", domain="evil"), domains=["evil"]),
        "operators of 'evil'",
    ),
    "an operator of a domain that is not imported": (
        model(node("FusedConv", domain="com.microsoft")),
        "'com.microsoft.FusedConv', which is not allowed",
    ),
    "an operator of ONNX Runtime's": (
        model(node("WordConvEmbedding", domain="com.microsoft"), domains=["com.microsoft"]),
        "WordConvEmbedding",
    ),
    "an unknown operator": (model(node("Det")), "'Det'"),
    "noise": (model(node("RandomNormalLike")), "'RandomNormalLike'"),
    "a sequence": (model(node("SequenceConstruct")), "'SequenceConstruct'"),
    "a loop": (looped(), "a loop or a branch"),
    "a branch": (branched(), "a loop or a branch"),
    "a function": (function(), "functions"),
    "metadata": (helper.set_model_props(m := good(), {"a": "b"}) or m, "metadata"),
    "another opset": (
        helper.make_model(good().graph, opset_imports=[helper.make_opsetid("", 7)]),
        "version 7",
    ),
    "data in another file": (outside(), "lies in another file"),
    "typed data": (typed(), "typed fields"),
    "a tensor as an attribute": (with_tensor_attribute(), "a tensor as an attribute"),
    "a weight of 2^40 elements": (claimed(1 << 20, 1 << 20), "1099511627776 elements"),
    "a weight whose size wraps around": (claimed(1 << 32, 1 << 32, 108), "elements"),
    "a weight of a negative size": (claimed(-4, -3, 3, 3), "impossible type or shape"),
    "a value twice": (model(node("Relu"), node("Abs")), "one name"),
    "a weight of the input's name": (
        model(node("Relu"), tensors=[stored("x0", 1)]),
        "one name",
    ),
    "what is not there": (model(node("Add", "nowhere")), "not there yet"),
    "no result": (model(node("Relu", outputs=["z"])), "returns what it does not have"),
}
# Files that are well-formed and ask for too much, or for what does not fit.
UNFIT = {
    "expanded to 2^40": (
        model(node("Expand", "s"), tensors=[stored("s", 1 << 20, 1, 1 << 20, 1, 1, 1)]),
        "at 'Expand'",
    ),
    "repeated to 2^40": (
        model(node("Tile", "s"), tensors=[stored("s", 1, 1 << 17, 1 << 17, 1)]),
        "at 'Tile'",
    ),
    "padded to 2^40": (
        model(node("Pad", "s"), tensors=[stored("s", 0, 0, 0, 0, 0, 0, 1 << 20, 1 << 20)]),
        "at 'Pad'",
    ),
    "resized to 2^40": (
        model(
            node("Resize", "", "s"),
            tensors=[numpy_helper.from_array(np.array([1, 1, 2e5, 2e5], np.float32), "s")],
        ),
        "at 'Resize'",
    ),
    "an outer sum of 2^40": (
        model(
            helper.make_node("Reshape", ["x0", "a"], ["u"]),
            helper.make_node("Tile", ["u", "c"], ["v"]),
            helper.make_node("Transpose", ["v"], ["w"], perm=[1, 0]),
            helper.make_node("Add", ["v", "w"], ["y"]),
            tensors=[stored("a", 1, -1), stored("c", 1, 1 << 13)],
        ),
        "at 'Add'",
    ),
    "a shape that is computed": (
        model(
            helper.make_node("Cast", ["x0"], ["s"], to=TensorProto.INT64),
            node("Expand", "s"),
        ),
        "not known beforehand",
    ),
    "a window larger than its map": (
        model(node("MaxPool", kernel_shape=[9, 9])),
        "does not fit its tensors",
    ),
    "no kernel": (model(node("MaxPool")), "does not fit its tensors"),
    "an axis that is none": (model(node("Concat", axis=1 << 40)), "axis"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_export_does_not_write_is_refused(name):
    made, said = REFUSED[name]
    with pytest.raises(BundleError, match=said.replace("^", r"\^")):
        held(made.SerializeToString())


@pytest.mark.parametrize("name", UNFIT)
def test_what_takes_too_much_is_refused_without_taking_it(name):
    made, said = UNFIT[name]
    data = made.SerializeToString()
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=said):
            sizes(held(data), {"x0": (1, 3, 8, 8)})
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_what_fits_is_sized():
    found = held(good().SerializeToString())
    assert sizes(found, {"x0": (5, 3, 8, 8)}) == [((5, 4, 6, 6), FLOAT)]


def test_reading_bounds_what_the_bytes_bound():
    """A megabyte of weights is not copied."""
    weight = numpy_helper.from_array(np.ones((1 << 18,), np.float32), "w")
    data = model(node("Identity"), tensors=[weight]).SerializeToString()
    tracemalloc.start()
    held(data)
    assert tracemalloc.get_traced_memory()[1] < 1 << 18
    tracemalloc.stop()


def test_damaged_bytes_are_refused_or_read_never_more():
    """Bits turned, bytes cut off, dropped and doubled: an answer or a refusal, at any place."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
    plain = lowered(
        record(net.eval(), [torch.zeros(2, 3, 8, 8)], True), [torch.zeros(1, 3, 8, 8)], True
    )
    whole = optimised(plain, "layout")
    rng = random.Random(0)
    refused = 0
    for turn in range(1500):
        data = bytearray(whole)
        at = rng.randrange(len(data))
        if turn % 4 == 0:
            del data[at:]
        elif turn % 4 == 1:
            del data[at : at + rng.randrange(1, 9)]
        elif turn % 4 == 2:
            data[at:at] = data[at : at + rng.randrange(1, 9)]
        else:
            data[at] ^= 1 << rng.randrange(8)
        try:
            sizes(held(bytes(data)), {"x0": (1, 3, 8, 8)})
        except BundleError:
            refused += 1
    assert refused > 700


def test_our_reader_sees_what_the_onnx_package_sees():
    data = good().SerializeToString()
    ours, theirs = read_onnx(data), onnx.load_model_from_string(data).graph
    assert [(n.op, list(n.inputs), list(n.outputs)) for n in ours.nodes] == [
        (n.op_type, list(n.input), list(n.output)) for n in theirs.node
    ]
    (tensor,) = theirs.initializer
    assert ours.tensors["w"].dims == tuple(tensor.dims)
    assert bytes(ours.tensors["w"].raw) == tensor.raw_data
    assert math.prod(ours.tensors["w"].dims) == 108


def test_every_rule_is_of_a_known_domain():
    assert {domain for domain, _ in RULES} == OPSETS.keys()
