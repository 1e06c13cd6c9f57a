"""The command line: commands, their options, progress and exit codes; no logic.

Exit codes: 0 found or holds, 1 the run failed or could not be decided, 2 wrong usage, 3 no safe
cut, 4 privacy regression, 5 cut moved or latency regressed, 6 not splitting is at least as fast,
130 interrupted. `serve` ends with 0 on SIGTERM, as service managers stop a service, and with 130 on
Ctrl-C; both clean up.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from typing import Annotated, Any

import typer

from .commands import check as checking
from .commands import deploy, study
from .commands import find as finding
from .commands import profile as profiling
from .commands import worker as working
from .commands.console import (
    Interrupts,
    err,
    out,
    tell_notices,
)
from .errors import first_line, nearest

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Find where to part a neural network between an enclave and an untrusted accelerator.",
)
for part in (finding, profiling, working, checking, study, deploy):
    app.add_typer(part.app)
# GNU OpenMP's threads spin for milliseconds at every barrier, which on a busy machine multiplies
# training times; short spins cost a few per cent on a quiet one. Read when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
INTERRUPTED = 130  # as shells number it: 128 + SIGINT


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        out.print(f"partopt {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version")
    ] = False,
) -> None:
    pass


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code. Errors are one sentence on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    tell_notices()
    try:
        with Interrupts():
            code: Any = app(arguments, standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except typer.Abort as stop:  # what typer makes of an EOFError
        cause = stop.__cause__
        if isinstance(cause, EOFError):
            return _failed(cause, debug="--debug" in arguments)
        code = INTERRUPTED
    except Exception as error:
        return _failed(error, debug="--debug" in arguments)
    if code == INTERRUPTED:
        # Where a Ctrl-C passed through evaluated code, CPython would end by the signal instead.
        exec("")
        resumed = arguments[:1] in (["find"], ["check"], ["reproduce"])
        what = "; the same command goes on from the attacks that were finished" if resumed else ""
        _say(f"interrupted{what}")
    return code if isinstance(code, int) else 0


def _failed(error: Exception, debug: bool) -> int:
    """Say what went wrong; return the exit code."""
    from .errors import PartoptError

    if hasattr(error, "format_message"):  # usage errors of typer (or of the click it wraps)
        text = _usage(error)
        if type(error).__name__ == "NoArgsIsHelpError":
            err.print(text, highlight=False, markup=False)
        else:
            _say(text)
        return 2
    if debug:
        raise error
    if isinstance(error, PartoptError):
        _say(str(error))
        return error.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        from .cache import refusal

        _say(refusal(error.filename or "a file", error))
        return 1
    if isinstance(error, OSError) and error.strerror:
        where = f" at {error.filename!r}" if error.filename else ""
        _say(f"the system refused{where}: {error.strerror.lower()}; --debug shows where")
        return 1
    if isinstance(error, MemoryError):
        _say("there is not enough memory; use a smaller --budget, --input-size or --batch")
        return 1
    _say(f"{type(error).__name__}: {first_line(error)} (this is a bug; --debug shows where)")
    return 1


def _usage(error: Any) -> str:
    """What typer found wrong, a word that is none of those allowed said as we say it elsewhere."""
    text = str(error.format_message())
    found = re.search(r"'(.*)' is not one of (.*?)\.?$", str(getattr(error, "message", "")), re.S)
    parameter = getattr(error, "param", None)
    if found is None or parameter is None:
        return text
    name = (parameter.opts[0] if parameter.opts else str(parameter.name)).lstrip("-")
    allowed = found[2].replace("'", "").split(", ")
    return f"`{name}` got {found[1]!r}{nearest(found[1], allowed)}; use {', '.join(allowed)}"


def _say(message: str) -> None:
    err.print("error: ", style="bold red", end="")
    err.print(message, highlight=False, markup=False, soft_wrap=True)


def main() -> None:
    """Entry point of the ``partopt`` command."""
    sys.exit(run())
