"""ONNX Runtime as the engine of a part: no torch, and no ``onnx`` package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import BackendError, BundleError, first_line
from ..wire.layouts import DTYPES
from .engine import Engine, Runs
from .onnx_file import FLOAT
from .onnx_held import held, sizes
from .ort_runtime import How, Session
from .parts import PROGRAM, WEIGHTS_OF, Part, said_of, weights_of
from .trial import hold, noise

# ONNX's numbers of types as numpy's dtypes.
_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    11: "float64",
}


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
        running = Session(data, How(threads=threads))
    except BackendError:
        raise
    except Exception as error:  # its errors have no common class
        raise BundleError(f"{name} is not taken by ONNX Runtime: {first_line(error)}") from None
    del data, model

    def run(*given: np.ndarray) -> Sequence[np.ndarray]:
        try:
            return running.run(dict(zip(names, given, strict=True)))
        except Exception as error:
            raise RuntimeError(first_line(error)) from None

    hold(said, run(*(noise(t.shape) for t in part.inputs)), f"{folder.name}/{PROGRAM}")
    return run


ENGINE = Engine("ort", lambda threads: None, load)
