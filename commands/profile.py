"""Timing a model where it will run: profile. No logic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import AsJson, Debug, Shown, err, show, written
from .options import (
    Accelerator,
    Batch,
    ConcreteArgs,
    Depth,
    Enclave,
    Engine,
    InputSize,
    LeafModules,
    MaxCuts,
    Model,
    Repetitions,
    RequireWeights,
    Seed,
    Threads,
    TrustModel,
    Weights,
    kind_of_cuts,
)

if TYPE_CHECKING:
    from ..studies.profiling import ProfileOptions

app = typer.Typer()


@app.command()
def profile(
    model: Model,
    cuts: Annotated[
        str | None,
        typer.Option(
            help="Those shown: clean, all, stage, paper or node names; the file holds all [clean]"
        ),
    ] = None,
    max_cuts: MaxCuts = None,
    depth: Depth = None,
    weights: Weights = None,
    enclave: Enclave = None,
    accelerator: Accelerator = None,
    engine: Engine = None,
    threads: Threads = None,
    batch: Batch = None,
    repetitions: Repetitions = None,
    machine: Annotated[
        str | None, typer.Option(help="What results call this machine [its host name]")
    ] = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: MODEL.profile.json")
    ] = None,
    seed: Seed = None,
    require_weights: RequireWeights = False,
    trust_model: TrustModel = False,
    input_size: InputSize = None,
    concrete_args: ConcreteArgs = None,
    leaf_modules: LeafModules = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Time every cut on this machine, for find --profile elsewhere.

    Takes about a minute, no data and no attack.
    """
    from ..arguments.outputs import writable
    from ..graph.traceargs import Tracing
    from ..models.load import short_name
    from ..reporting.profiled import render, told
    from ..studies.profiling import profile_model

    path = writable(out_file or Path(f"{short_name(model)}.profile.json"), "out")
    given: ProfileOptions = {
        "cuts": None if cuts is None else kind_of_cuts(cuts),
        "max_cuts": max_cuts,
        "depth": depth,
        "weights": weights,
        "enclave": enclave,
        "accelerator": accelerator,
        "engine": engine,
        "threads": threads,
        "batch": batch,
        "repetitions": repetitions,
        "machine": machine,
        "seed": seed,
        "require_weights": require_weights or None,
        "trust_model": trust_model,
        "input_size": input_size,
        "tracing": Tracing.parse(concrete_args, leaf_modules),
    }
    with Shown() as shown:
        found = profile_model(model, watcher=shown, **given)
    found.target.write(path)  # first, for whoever reads stdout may go away
    if as_json:
        written(found.target.to_json())
    else:
        show(render(found))
    err.print(f"profile: {path}, {told(found.target)}", highlight=False, markup=False)
