"""ONNX Runtime's optimisations, once, at export; what they make is stored and run as it is.

At the level ``layout`` convolutions work on blocks of channels, as wide as this machine's vectors:
the file is for machines like this one, and a worker finds out by trying it (`checks`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from ...errors import BackendError, ExportError, first_line
from ..program.onnx_held import OPSETS, held
from ..program.ort_runtime import EXTENDED, LAYOUT, How, Session
from .model import MISSING

LEVELS = ("layout", "extended")


def optimised(model: bytes, level: str) -> bytes:
    """`model` as ONNX Runtime rewrites it at `level`, in the one form that workers read.

    Raises:
        ExportError: ONNX Runtime is missing or fails, or writes operators that are not allowed.
    """
    try:
        import onnx
    except ImportError:
        raise ExportError(MISSING) from None
    rewritten = LAYOUT if level == "layout" else EXTENDED
    with tempfile.TemporaryDirectory(prefix="partopt-onnx-") as hidden:
        path = Path(hidden) / "model.onnx"
        try:
            Session(model, How(level=rewritten, saved=str(path)))
            found = onnx.load_model_from_string(path.read_bytes())
        except BackendError as error:
            raise ExportError(f"{error}, or use --engine torch") from None
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
