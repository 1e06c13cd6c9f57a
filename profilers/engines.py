"""The enclave's side of a profile by the engine that will run the head."""

from __future__ import annotations

import torch

from ..enclave_runner.lowering.accounting import accounted
from ..enclave_runner.lowering.choosing import Half, choose
from ..enclave_runner.probing import OrtProbe
from ..errors import ExportError
from .instrumented import Rows, Subject

_IMAGES = 3


class OrtPass(Rows):
    """Passes of the whole model by ONNX Runtime, in a worker that the runner's launcher starts."""

    def __init__(self, subject: Subject, backend: str) -> None:
        super().__init__()
        assert subject.program is not None
        model = accounted(subject.program, subject.example, subject.dynamic, subject.marks)
        threads = torch.get_num_threads()
        self.probe = OrtProbe(model, subject.example.shape, backend=backend, threads=threads)

    def once(self, keep: bool = True) -> None:
        """Run once; `keep` is False for warm-up."""
        at, end = self.probe.once()
        if keep:
            self.add(at, end)

    def close(self) -> None:
        """End the worker."""
        self.probe.close()


def chosen(subject: Subject, wanted: str) -> tuple[str, str]:
    """The engine that times the enclave's side, and why it is not ONNX Runtime under ``auto``.

    The whole model is held against the program in torch and timed beside it, as `export` does with
    a head.

    Raises:
        ExportError: ``ort`` was asked for and cannot run the model.
    """
    if wanted == "torch":
        return "torch", ""
    if subject.program is None:
        if wanted == "ort":
            raise ExportError(f"`engine` got 'ort', but no program can hold it: {subject.reason}")
        return "torch", subject.reason
    generator = torch.Generator().manual_seed(0)
    images = [[torch.rand(subject.example.shape, generator=generator)] for _ in range(_IMAGES)]
    half = Half(
        plain=subject.program,
        quick=subject.program,
        dynamic=subject.dynamic,
        inputs=images,
        answers=None,
    )
    found = choose(half, wanted)
    return found.engine, "; ".join(found.tried.values()) if found.engine == "torch" else ""
