"""Code of the user's own: its prints kept off stdout, its errors told with file and line."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

_CALLERS = tuple(
    str(Path(__file__).resolve().with_name(n))
    for n in ("users_code.py", "factories.py", "trial_run.py")
)
_LIBRARIES = (
    *(sysconfig.get_path(p) for p in ("stdlib", "platstdlib", "purelib", "platlib")),
    str(Path(torch.__file__).parents[1]),
)


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Let modules of the working folder be imported, as ``python -m`` would.

    What the code prints goes to stderr, for stdout is for results. Settings of torch that it
    changes for the whole process are put back.
    """
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    dtype, grad, device = (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_default_device(),
    )
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        if added and here in sys.path:
            sys.path.remove(here)


def told(error: BaseException) -> str:
    """Say in one phrase what was raised and where in the user's code."""
    lines = str(error).strip().splitlines()
    if isinstance(error, SyntaxError):
        where = f"{error.filename}:{error.lineno}" if error.filename else "its code"
        return f"{type(error).__name__} at {where}: {error.msg}"
    if isinstance(error, SystemExit):
        said = f"SystemExit ({error.code})" if error.code is not None else "SystemExit"
        return f"{said}{_place(error)}, which would end the process"
    said = f"{type(error).__name__}{_place(error)}"
    return f"{said}: {lines[0]}" if lines else said


def _place(error: BaseException) -> str:
    """The innermost line that is neither partopt's nor a library's."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith(("<", *_LIBRARIES, *_CALLERS))
    ]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
