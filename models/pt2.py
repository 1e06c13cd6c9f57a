"""Networks exported by ``torch.export``: what a ``.pt2`` file must hold to be attacked.

The loader may unpickle, so it only runs when the caller says so; what can be told from the archive
is told before.
"""

from __future__ import annotations

import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..arguments.numbers import SIZES
from ..errors import UsageError

_WANTED = "partopt attacks networks of one float32 image tensor of shape (N, 3, S, S)"


@dataclass(frozen=True)
class Program:
    """An exported program that takes one square RGB image, and its side in pixels."""

    exported: torch.export.ExportedProgram
    side: int

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that its answers depend on besides the graph."""
        constants = self.exported.constants
        tensors = {k: v for k, v in constants.items() if isinstance(v, torch.Tensor)}
        return {**self.exported.state_dict, **tensors}


def read(spec: str, trust_model: bool) -> Program:
    """Load a ``.pt2`` file.

    Raises:
        UsageError: No such file, not trusted, no exported program, or one of another input.
    """
    path = Path(spec)
    _is_program(spec, path)
    if not trust_model:
        raise UsageError(
            f"`model` got {spec!r}: torch.export.load may unpickle, which can run code from the "
            "file; pass --trust-model if you made the file yourself"
        )
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # it logs tracebacks of its own
    try:
        program = torch.export.load(path)
    except Exception as error:
        reason = str(error).strip().splitlines()[:1]
        raise UsageError(
            f"`model` got {spec!r}, which torch {torch.__version__} cannot load "
            f"({': '.join([type(error).__name__, *reason])[:200]}); export it again"
        ) from error
    finally:
        logging.disable(before)
    return Program(program, _side(spec, program))


def _is_program(spec: str, path: Path) -> None:
    """Raise unless the file is a whole archive that ``torch.export.save`` made."""

    def refuse(what: str, do: str = "give a file that torch.export.save wrote") -> UsageError:
        return UsageError(f"`model` got {spec!r}, which {what}; {do}")

    if path.is_dir():
        raise refuse("is a folder")
    if not path.is_file():
        raise refuse("does not exist", "give a torch.export file")
    try:
        if not path.stat().st_size:
            raise refuse("is empty", "export it again")
        if not zipfile.is_zipfile(path):
            raise refuse("is torn or no torch.export file", "export it again")
        with zipfile.ZipFile(path) as archive:
            names = [n.partition("/")[2] for n in archive.namelist()]
            broken = archive.testzip() if "archive_format" in names else None
    except UsageError:
        raise
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise refuse(f"cannot be read ({str(error)[:120]})", "export it again") from error
    if broken is not None:
        raise refuse(f"is damaged at {broken}", "copy or export it again")
    if "archive_format" in names and any(n.startswith("models/") for n in names):
        return
    if "constants.pkl" in names or any(n.startswith("code/") for n in names):
        raise refuse("is a TorchScript program", "export the Python module with torch.export")
    if "data.pkl" in names:
        raise refuse(
            "holds weights and no program", "name the architecture and give the file with --weights"
        )
    raise refuse("is no torch.export file")


def _side(spec: str, program: torch.export.ExportedProgram) -> int:
    """The side of the image that the program takes, in pixels.

    Raises:
        UsageError: It takes something else.
    """

    def refuse(what: str) -> UsageError:
        return UsageError(f"`model` got {spec!r}, which takes {what}; {_WANTED}")

    positional, by_name = program.call_spec.in_spec.children()
    if by_name.num_children:
        raise refuse(f"the keyword arguments {', '.join(map(str, by_name.context))}")
    leaves = positional.children()
    if len(leaves) != 1:
        raise refuse(f"{len(leaves)} inputs")
    if not leaves[0].is_leaf():
        raise refuse(f"a {leaves[0].type.__name__} of {leaves[0].num_leaves}")
    value = _placeholder(program)
    if not isinstance(value, torch.Tensor):
        raise refuse(f"a {type(value).__name__}")
    example = (program.example_inputs or ((), {}))[0]
    hint = example[0].shape if example and isinstance(example[0], torch.Tensor) else value.shape
    dims = ", ".join(str(d) for d in value.shape)
    kind = str(value.dtype).removeprefix("torch.")
    if value.dtype is not torch.float32 or value.ndim != 4:
        raise refuse(f"{kind} of shape ({dims})")
    if value.shape[1] != 3 or hint[2] != hint[3]:
        raise refuse(f"images of shape ({dims})")
    side = int(hint[3])
    if not SIZES[0] <= side <= SIZES[1]:
        raise refuse(f"images of {side}x{side}, and a side must have {SIZES[0]} to {SIZES[1]}")
    held = [*program.state_dict.values(), *program.constants.values()]
    devices = {str(t.device) for t in held if isinstance(t, torch.Tensor)}
    devices |= {str(d) for n in program.graph.nodes if (d := n.kwargs.get("device")) is not None}
    if other := sorted(d for d in devices if not d.startswith("cpu")):
        raise UsageError(
            f"`model` got {spec!r}, which was exported on {other[0]}; export it on the CPU"
        )
    return side


def _placeholder(program: torch.export.ExportedProgram) -> Any:
    """The one input, as the exporter saw it."""
    name = program.graph_signature.user_inputs[0]
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name == name:
            return node.meta.get("val")
    return name
