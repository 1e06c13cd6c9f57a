"""A trial of an ONNX model on noise, against what the program gave at export.

What ONNX Runtime stores may be made for processors like the one of the export. On another it may
run and answer nonsense, so that a worker tries its model before it serves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import BundleError
from .plain_json import parsed

# Of an output's standard deviation.
TOLERANCE = 1e-3
_VALUES = 256
_SCHEMA = 1


def noise(shape: Sequence[int]) -> np.ndarray:
    """Numbers in [-1, 1), float32, that look like none: the same on every machine."""
    state = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    unit = (state >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
    return np.asarray((2 * unit - 1).reshape(tuple(shape)), np.float32)


def sampled(outputs: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Some values of each output, spread over it, and its standard deviation."""
    found = []
    for output in outputs:
        flat = output.astype(np.float64).ravel()
        places = np.linspace(0, flat.size - 1, min(flat.size, _VALUES)).astype(np.int64)
        found.append({"deviation": float(flat.std()), "values": flat[places].tolist()})
    return found


def written(level: str, outputs: Sequence[np.ndarray]) -> dict[str, Any]:
    """``program.json`` of an ONNX model: how it was optimised, and what a trial gives."""
    return {"schema": _SCHEMA, "engine": "ort", "level": level, "trial": sampled(outputs)}


def hold(said: bytes, outputs: Sequence[np.ndarray], name: str) -> None:
    """Raise unless `outputs`, of `noise`, are what ``program.json`` says.

    Raises:
        BundleError: They are not, or `said` is not as export writes it.
    """
    data = parsed(said, name)
    try:
        if data["schema"] != _SCHEMA or data["engine"] != "ort":
            raise ValueError
        expected = [
            (float(t["deviation"]), np.array(t["values"], np.float64)) for t in data["trial"]
        ]
        fits = len(expected) == len(outputs) and all(
            v.shape == (min(o.size, _VALUES),) for (_, v), o in zip(expected, outputs, strict=True)
        )
        if not fits:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise BundleError(f"{name!r} is not as export writes it; export again") from None
    for (deviation, values), found in zip(expected, sampled(outputs), strict=True):
        off = np.abs(np.array(found["values"]) - values).max()
        if not off <= TOLERANCE * deviation:
            raise BundleError(
                f"the model answers a trial otherwise than at export, by {off:.1e}: it was made "
                "for another kind of processor; export on this one, or with --engine torch"
            )
