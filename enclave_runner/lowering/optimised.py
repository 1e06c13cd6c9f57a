"""ONNX Runtime's optimisations, once, at export; what they make is stored and run as it is.

At the level ``layout`` convolutions work on blocks of channels, as wide as this machine's vectors:
the file is for machines like this one, and a worker finds out by trying it (`checks`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from ...errors import ExportError, first_line
from ..program.onnx_held import OPSETS, held

LEVELS = ("layout", "extended")


def optimised(model: bytes, level: str) -> bytes:
    """`model` as ONNX Runtime rewrites it at `level`, in the one form that workers read.

    Raises:
        ExportError: ONNX Runtime is missing or fails, or writes operators that are not allowed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise ExportError(
            "an ONNX model needs the packages onnx and onnxruntime; pip install 'partopt[ort]', or "
            "use --engine torch"
        ) from None
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if level == "layout" else levels.ORT_ENABLE_EXTENDED
    )
    with tempfile.TemporaryDirectory(prefix="partopt-onnx-") as hidden:
        path = Path(hidden) / "model.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            found = onnx.load_model_from_string(path.read_bytes())
        except Exception as error:  # its errors have no common class
            raise ExportError(f"ONNX Runtime cannot take the head: {first_line(error)}") from None
    data = _plain(found)
    held(data)
    return data


def _plain(model: object) -> bytes:
    """A model in the form that workers read: raw tensors, no texts, no unused domains."""
    from onnx import ModelProto, helper, numpy_helper

    assert isinstance(model, ModelProto)
    graph = model.graph
    used = {"" if n.domain == "ai.onnx" else n.domain for n in graph.node}
    tensors = [numpy_helper.from_array(numpy_helper.to_array(t), t.name) for t in graph.initializer]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    plain = helper.make_graph(list(graph.node), "head", graph.input, graph.output, tensors)
    opsets = [helper.make_opsetid(d, OPSETS.get(d, 1)) for d in sorted(used | {""})]
    made = helper.make_model(
        plain, opset_imports=opsets, ir_version=model.ir_version, producer_name="partopt"
    )
    return bytes(made.SerializeToString())
