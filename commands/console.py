"""Where the command line writes: results on stdout, progress and messages on stderr."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

from ..notices import log
from ..printable import printable


class Plain(Console):
    """A console that takes text for text, and whose reader may go away.

    Names may hold anything: nothing in square brackets is markup, nothing between colons an emoji,
    and what would steer the terminal is written as an escape. The work and its exit code are no
    less for a closed pipe.
    """

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As the base class, every text printable."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text, keep="\n"), segment.style)

    def on_broken_pipe(self) -> None:
        """Write no more."""
        self.quiet = True
        _silence(self.file)


def _silence(stream: Any) -> None:
    """Send a stream whose reader is gone to nowhere, so that no later write or flush fails."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


out, err = Plain(), Plain(stderr=True)
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")]
T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="Only JSON on stdout")]


def show(what: RenderableType) -> None:
    """Print without cutting columns off where the output is no terminal."""
    if not out.is_terminal:
        out.width = 160
    out.print(what)


def written(text: str) -> None:
    """Write to stdout as it is; whoever read it may be gone."""
    if sys.stdout is None:  # closed before we started
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _silence(sys.stdout)


def tell(text: str, style: str = "") -> None:
    """A message on stderr, one line however long."""
    err.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


class Interrupts:
    """Remembers a Ctrl-C that was lost in a callback or an import, until the next stage.

    Used as a context in the main thread; elsewhere it does nothing.
    """

    seen = False

    def __enter__(self) -> None:
        Interrupts.seen = False
        self.before = signal.getsignal(signal.SIGINT)
        self.ours = (
            threading.current_thread() is threading.main_thread()
            and self.before is signal.default_int_handler
        )
        if self.ours:
            signal.signal(signal.SIGINT, self._note)

    def __exit__(self, *_: object) -> None:
        if self.ours:
            signal.signal(signal.SIGINT, self.before)

    @staticmethod
    def _note(number: int, frame: FrameType | None) -> None:
        Interrupts.seen = True
        signal.default_int_handler(number, frame)


class _Notices(logging.Handler):
    """Lines of partopt's log on stderr, above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one line."""
        tell(f"! {record.getMessage()}", "yellow")


def tell_notices() -> None:
    """Show what is worth a line while a command runs, once however often this is called."""
    if not any(isinstance(h, _Notices) for h in log.handlers):
        log.addHandler(_Notices())


class Shown:
    """Progress on stderr: a bar on a terminal, nothing otherwise."""

    def __init__(self) -> None:
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("at most"),
            TimeRemainingColumn(),
            console=err,
            disable=not err.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("starting", total=1.0)
        self.detail = self.bar.add_task("", total=1.0, visible=False)

    def __enter__(self) -> Shown:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def stage(self, text: str, jobs: int | None = None) -> None:
        """Name the stage; with `jobs`, its time left is an estimate for the most it can take.

        Raises:
            KeyboardInterrupt: One came before and was lost.
        """
        if Interrupts.seen:
            raise KeyboardInterrupt
        self.bar.update(self.detail, visible=False)
        self.bar.reset(self.task, total=jobs, description=text)

    def progress(self, what: str, share: float) -> None:
        """Move the bar of the current job."""
        if self.bar.tasks[1].description != what:
            self.bar.reset(self.detail, total=1.0, description=f"  {what}", visible=True)
        self.bar.update(self.detail, completed=share, description=f"  {what}")

    def attacked(self, cut: str, attacker: str, score: float | None, leaks: bool) -> None:
        """Leave a line per attack above the bar."""
        self.bar.advance(self.task)
        if err.is_terminal:
            word = "failed" if score is None else f"{score:.2f}" + (" leaks" if leaks else "")
            self.bar.console.print(
                f"  {cut:<32} {attacker:<8} {word}", style="dim", highlight=False
            )


def numbers(name: str, text: str | None) -> list[float] | None:
    """Numbers separated by commas, as the option `name` got them."""
    return _parsed(name, text, float, "one number or three, like 0.5,0.5,0.5")


def integers(name: str, text: str | None) -> list[int] | None:
    """Whole numbers separated by commas, as the option `name` got them."""
    return _parsed(name, text, int, "whole numbers, like 100,200,400")


def _parsed(name: str, text: str | None, kind: Callable[[str], T], wanted: str) -> list[T] | None:
    if text is None:
        return None
    from ..errors import UsageError

    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"`{name}` got {text!r}; use {wanted}") from None
