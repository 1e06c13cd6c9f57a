"""Working for the searches of other processes: worker. No logic."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from .console import Debug, Shown, numbers, tell
from .options import (
    Accelerator,
    Artifacts,
    ConcreteArgs,
    Data,
    InputSize,
    LeafModules,
    Model,
    RequireWeights,
    Seed,
    Three,
    TrustModel,
    Weights,
)

if TYPE_CHECKING:
    from ..optimizer.worker import Worker

app = typer.Typer()


@app.command()
def worker(
    model: Model,
    storage: Annotated[
        str | None,
        typer.Option(
            envvar="PARTOPT_STORAGE",
            help="The storage of the searches: a database URL, or a .journal file on one machine",
        ),
    ] = None,
    weights: Weights = None,
    data: Data = None,
    accelerator: Accelerator = None,
    artifacts: Artifacts = None,
    idle: Annotated[
        float | None, typer.Option(help="Seconds without a job after which it ends [never]")
    ] = None,
    seed: Seed = None,
    require_weights: RequireWeights = False,
    trust_model: TrustModel = False,
    mean: Three = None,
    std: Three = None,
    input_size: InputSize = None,
    concrete_args: ConcreteArgs = None,
    leaf_modules: LeafModules = None,
    feature_cache: Annotated[float, typer.Option(help="Disk for feature maps, GiB")] = 8.0,
    until_eof: Annotated[bool, typer.Option("--until-eof", hidden=True)] = False,
    debug: Debug = False,
) -> None:
    """Make the attacks of searches that wait in a storage.

    Of those that `find --storage` coordinates and whose model, weights and images are the copies
    given here. Ends on Ctrl-C or SIGTERM, and gives back the attack that it is at.
    """
    from ..arguments.numbers import above_zero
    from ..errors import UsageError
    from ..graph.traceargs import Tracing
    from ..models.load import load
    from ..models.request import ModelRequest
    from ..optimizer.premises import Own
    from ..optimizer.storage import close, open_storage, spoken
    from ..optimizer.urls import hold_shared
    from ..optimizer.worker import Worker, WorkerPace
    from ..profilers.backends import pick_accelerator
    from ..profilers.memory import keep_memory

    if not storage:
        raise UsageError(
            "`storage` is needed: the URL of the database that searches share, or a .journal file; "
            "PARTOPT_STORAGE holds one that must not stand in a list of processes"
        )
    above_zero("idle", idle, "seconds")
    above_zero("feature_cache", feature_cache, "an amount of GiB")
    hold_shared(storage)
    opened, _ = open_storage(storage)
    keep_memory()
    loaded = load(
        ModelRequest(
            spec=model,
            weights=weights or "DEFAULT",
            require_weights=require_weights,
            trust_model=trust_model,
            mean=numbers("mean", mean),
            std=numbers("std", std),
            input_size=input_size,
            tracing=Tracing.parse(concrete_args, leaf_modules),
            seed=seed or 0,
        )
    )
    own = Own(
        model=loaded,
        graph=loaded.trace(),
        data=data,
        device=pick_accelerator(accelerator or "auto"),
        cache_bytes=int(feature_cache * 2**30),
    )
    with contextlib.ExitStack() as stack:
        stack.callback(close, opened)
        shown = stack.enter_context(Shown())
        stack.enter_context(spoken(opened))
        made = Worker(opened, own, WorkerPace(idle=idle), artifacts, shown.progress)
        stack.enter_context(_told_to_stop(made, until_eof))
        done = made.run()
    tell(f"{done} attacks made")


@contextlib.contextmanager
def _told_to_stop(made: Worker, until_eof: bool) -> Iterator[None]:
    """SIGTERM, as schedulers send it, ends the worker in order; so does the end of its input."""

    def end(*_: object) -> None:
        made.stop()

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(sys.stdin.fileno(), 1 << 10):
                pass
        made.stop(after_this=True)

    if until_eof:
        threading.Thread(target=watch, daemon=True).start()
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
