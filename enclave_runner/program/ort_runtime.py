"""ONNX Runtime's compiled module, loaded alone and with its telemetry off.

Since 1.29 its Linux builds tell its makers about sessions and models, and keep a file in the user's
cache, unless they are told not to before they start. Its Python package looks at the system beyond
that; nothing of it is needed to run a model. This is the only place that loads it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

import numpy as np

from ...errors import BackendError

_NAME = "onnxruntime.capi.onnxruntime_pybind11_state"
# How far a model is rewritten when it is loaded.
PLAIN, EXTENDED, LAYOUT = "ORT_DISABLE_ALL", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"


def _loaded() -> ModuleType:
    """The compiled module.

    Raises:
        BackendError: It is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    package = importlib.util.find_spec("onnxruntime")
    folders = list(package.submodule_search_locations or ()) if package is not None else []
    spec = PathFinder.find_spec(_NAME, [os.path.join(f, "capi") for f in folders])
    if spec is None or spec.loader is None:
        raise BackendError("ONNX Runtime is not installed; pip install 'partopt[ort]'")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    module.disable_telemetry_events()
    return module


@dataclass(frozen=True, kw_only=True)
class How:
    """How a model is loaded.

    Attributes:
        threads: Compute threads; they never spin.
        level: `PLAIN`, or how it is rewritten.
        saved: Where what it was rewritten to goes, or "".
        profile: Prefix of the file that times of operators go to, or "".
    """

    threads: int = 1
    level: str = PLAIN
    saved: str = ""
    profile: str = ""


class Session:
    """A model that is loaded, on the processor.

    Args:
        model: Its bytes.
        how: How it is loaded.

    Raises:
        BackendError: ONNX Runtime is not installed.
        Exception: Whatever it says of the model; its errors have no common class.
    """

    def __init__(self, model: bytes, how: How) -> None:
        state = _loaded()
        options = state.SessionOptions()
        options.graph_optimization_level = getattr(state.GraphOptimizationLevel, how.level)
        options.execution_mode = state.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads, options.inter_op_num_threads = how.threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 4
        # Memory is the process's own allocator's, whose settings all workers share.
        options.enable_cpu_mem_arena = False
        if how.saved:
            options.optimized_model_filepath = how.saved
        if how.profile:
            options.enable_profiling, options.profile_file_prefix = True, how.profile
        self._session: Any = state.InferenceSession(options, model, False, False)
        self._session.initialize_session(["CPUExecutionProvider"], [{}], set())
        self._outputs = [o.name for o in self._session.outputs_meta]

    def run(self, given: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """The outputs, in the model's order, for inputs by name."""
        return list(self._session.run(self._outputs, given, None))

    def end_profiling(self) -> str:
        """The file of the profile, which is whole now."""
        return str(self._session.end_profiling())
