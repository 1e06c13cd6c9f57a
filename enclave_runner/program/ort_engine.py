"""ONNX Runtime as the engine of a part: no torch, and no ``onnx`` package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from ...errors import BundleError, first_line
from ..wire.layouts import DTYPES
from .engine import Engine, Runs
from .onnx_file import FLOAT
from .onnx_held import held, sizes
from .parts import PROGRAM, WEIGHTS_OF, Part, said_of, weights_of
from .trial import hold, noise

# ONNX's numbers of types as numpy's dtypes.
_DTYPES = dict(
    (
        *((1, "float32"), (2, "uint8"), (3, "int8"), (5, "int16"), (6, "int32"), (7, "int64")),
        *((9, "bool"), (11, "float64")),
    )
)


def session(model: bytes, threads: int, profile: str = "") -> onnxruntime.InferenceSession:
    """What runs `model` as it is: nothing is optimised any more, threads never spin.

    Args:
        model: Bytes that were looked at by `held`.
        threads: Compute threads.
        profile: Prefix of the file that times of operators are written to, or none.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4
    # Memory is the process's own allocator's, whose settings workers share.
    options.enable_cpu_mem_arena = False
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def load(folder: Path, part: Part, key: bytes | None, threads: int) -> Runs:
    """See `Engine`: hash, operators, shapes and a trial are held before anything is served.

    Raises:
        BundleError: Changed files, the wrong key, a model that export does not write, or one for
            another kind of processor.
    """
    name = f"{folder.name}/{WEIGHTS_OF['ort']}"
    data = weights_of(folder, part, key)
    model = held(data)
    taken = [t.name for t in part.inputs], [kind for _, kind in model.inputs]
    if len(model.inputs) != len(part.inputs) or set(taken[1]) != {FLOAT}:
        raise BundleError(f"{name} takes other tensors than its spec says; export again")
    for batch in {1, part.limits.batch}:
        shapes = {n: t.at(batch) for (n, _), t in zip(model.inputs, part.inputs, strict=True)}
        found = [(s, np.dtype(_DTYPES[k])) for s, k in sizes(model, shapes)]
        if found != [(t.at(batch), DTYPES[t.dtype]) for t in part.outputs]:
            raise BundleError(f"{name} gives other tensors than its spec says; export again")
    names = [n for n, _ in model.inputs]
    said = said_of(folder, part)
    try:
        running = session(data, threads)
    except Exception as error:  # its errors have no common class
        raise BundleError(f"{name} is not taken by ONNX Runtime: {first_line(error)}") from None
    del data, model

    def run(*given: np.ndarray) -> Sequence[np.ndarray]:
        try:
            return list(running.run(None, dict(zip(names, given, strict=True))))
        except Exception as error:
            raise RuntimeError(first_line(error)) from None

    hold(said, run(*(noise(t.shape) for t in part.inputs)), f"{folder.name}/{PROGRAM}")
    return run


ENGINE = Engine("ort", lambda threads: None, load)
