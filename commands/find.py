"""Finding a cut and showing what was found: find, cuts, report, compare, schema. No logic."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..arguments.choices import ChartName, ReportFormat
from .console import (
    AsJson,
    Debug,
    Shown,
    err,
    numbers,
    show,
    written,
)
from .options import (
    Accelerator,
    AdversaryImages,
    Artifacts,
    Batch,
    Budget,
    ConcreteArgs,
    Data,
    Enclave,
    Engine,
    InputSize,
    LeafModules,
    MaxCuts,
    Model,
    OldStrict,
    ProfileFile,
    Protocol,
    Repetitions,
    RequireWeights,
    Resolution,
    Scale,
    Seed,
    Settings,
    SgxModelText,
    Storage,
    Threads,
    Three,
    TrustModel,
    Weights,
    WorstRetrieval,
    WorstShare,
    kind_of_cuts,
)

if TYPE_CHECKING:
    from ..optimizer.find import SplitResult
    from ..optimizer.requests import FindOptions

app = typer.Typer()
DO_NOT_SPLIT = 6  # exit code


@app.command()
def find(
    model: Model,
    ssim: Annotated[
        float | None, typer.Option(help="Threshold: a score at or above it leaks [0.2]")
    ] = None,
    weights: Weights = None,
    data: Data = None,
    protocol: Protocol = None,
    cuts: Annotated[
        str | None,
        typer.Option(help="clean, all, stage, paper or node names separated by commas [clean]"),
    ] = None,
    max_cuts: MaxCuts = None,
    depth: Annotated[int | None, typer.Option(help="Module depth of a stage")] = None,
    budget: Budget = None,
    resolution: Resolution = None,
    scale: Scale = None,
    worst_share: WorstShare = None,
    worst_retrieval: WorstRetrieval = None,
    adversary_images: AdversaryImages = None,
    attackers: Annotated[
        str | None, typer.Option(help="Names separated by commas; default: the budget's panel")
    ] = None,
    enclave: Enclave = None,
    accelerator: Accelerator = None,
    engine: Engine = None,
    sgx_model: SgxModelText = None,
    threads: Threads = None,
    batch: Batch = None,
    repetitions: Repetitions = None,
    profile: ProfileFile = None,
    tune: Annotated[
        int | None,
        typer.Option(help="Settings tried for each attacker at the cut and the one before [0]"),
    ] = None,
    storage: Storage = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Attacks at a time; with --storage, worker processes that share it, 0 for none "
            "here [1]"
        ),
    ] = None,
    artifacts: Artifacts = None,
    seed: Seed = None,
    settings: Settings = None,
    require_weights: RequireWeights = False,
    trust_model: TrustModel = False,
    mean: Three = None,
    std: Three = None,
    input_size: InputSize = None,
    concrete_args: ConcreteArgs = None,
    leaf_modules: LeafModules = None,
    feature_cache: Annotated[float, typer.Option(help="Disk for feature maps, GiB")] = 8.0,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Split config to write; default: MODEL.split.json")
    ] = None,
    strict: OldStrict = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find the fastest cut that no attacker inverts.

    Writes its split config. Exits with 0 where there is such a cut, 3 where none is safe, 6 where
    not splitting is no slower. Under budget quick the cut is a candidate, screened and not
    certified; the code is the same.
    """
    from ..arguments.outputs import writable
    from ..graph.traceargs import Tracing
    from ..models.load import short_name
    from ..optimizer.find import find_cut
    from ..optimizer.requests import FindRequest
    from ..optimizer.urls import told
    from ..settings import for_find

    target = writable(out_file or Path(f"{short_name(model)}.split.json"), "out")
    given: FindOptions = {
        "ssim": ssim,
        "weights": weights,
        "data": data,
        "protocol": protocol,
        "cuts": None if cuts is None else kind_of_cuts(cuts),
        "max_cuts": max_cuts,
        "depth": depth,
        "budget": budget,
        "resolution": resolution,
        "scale": scale,
        "worst_share": worst_share,
        "worst_retrieval": worst_retrieval,
        "adversary_images": adversary_images,
        "attackers": attackers,
        "enclave": enclave,
        "accelerator": accelerator,
        "engine": engine,
        "sgx_model": sgx_model,
        "threads": threads,
        "batch": batch,
        "repetitions": repetitions,
        "profile": profile,
        "tune": tune,
        "storage": storage,
        "workers": workers,
        "artifacts": artifacts,
        "seed": seed,
        "require_weights": require_weights or None,
        "trust_model": trust_model,
        "mean": numbers("mean", mean),
        "std": numbers("std", std),
        "input_size": input_size,
        "tracing": Tracing.parse(concrete_args, leaf_modules),
        "feature_cache_gib": feature_cache,
        "command": shlex.join(["partopt", *told(sys.argv[1:])]),
    }
    request = FindRequest.of(model, for_find(model, given, settings))
    with Shown() as shown:
        result = find_cut(request, shown)
    _report(result, target, as_json)


def _report(result: SplitResult, path: Path, as_json: bool) -> None:
    from ..reporting.table import render

    result.config.write(path)  # first, for whoever reads stdout may go away
    if as_json:
        written(result.config.to_json())
    else:
        show(render(result.config))
    if not result.found:
        err.print(
            f"no safe cut: {path} holds the evidence and no cut (`cut` is null)",
            style="bold red",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(3)
    if not as_json:
        err.print(f"split config: {path}", highlight=False)
    if result.config.standing != "safe":
        doubt = f"candidate only, {result.config.standing}, not certified: "
        err.print(
            doubt + result.config.privacy.missing,
            style="bold yellow",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if result.config.recommendation == "do not split":
        err.print("not splitting is at least as fast and leaks nothing", style="bold yellow")
        raise typer.Exit(DO_NOT_SPLIT)


@app.command()
def cuts(
    model: Annotated[str, typer.Argument(help="As for find --model")],
    kind: Annotated[
        str, typer.Option("--cuts", help="clean, all, stage, paper or node names")
    ] = "clean",
    max_cuts: Annotated[int | None, typer.Option(help="Most cuts; default: all of them")] = None,
    depth: Annotated[int | None, typer.Option(help="Module depth of a stage")] = None,
    input_size: InputSize = None,
    trust_model: TrustModel = False,
    concrete_args: ConcreteArgs = None,
    leaf_modules: LeafModules = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the cuts of a model and what each costs, without attacks."""
    from dataclasses import asdict

    from ..arguments.numbers import whole
    from ..graph.traceargs import Tracing
    from ..models.load import load
    from ..models.request import ModelRequest
    from ..reporting.table import render_graph

    whole("max_cuts", max_cuts, 1)
    whole("depth", depth, 1)
    loaded = load(
        ModelRequest(
            spec=model,
            weights="none",
            trust_model=trust_model,
            input_size=input_size,
            tracing=Tracing.parse(concrete_args, leaf_modules),
        )
    )
    graph = loaded.trace()
    listed = graph.cuts(kind_of_cuts(kind), max_cuts=max_cuts, depth=depth)
    if as_json:
        written(json.dumps([asdict(c) for c in listed], indent=2) + "\n")
    else:
        show(render_graph(graph, listed))
        err.print(
            f"{len(listed)} cuts of {model}, traced by {graph.source}: {graph.flops / 1e9:.2f} "
            f"GFLOP, {graph.param_bytes / 1e6:.1f} MB of parameters at input "
            f"{'x'.join(map(str, graph.inputs[0].shape))}; {graph.likeness}",
            highlight=False,
        )
        remarks: dict[str, list[str]] = {}
        for cut in listed:
            for remark in cut.remarks:
                remarks.setdefault(remark, []).append(cut.name)
        for remark, names in remarks.items():
            text = f"! at {', '.join(names)}: {remark}"
            err.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


@app.command()
def report(
    split: Annotated[Path, typer.Argument(help="Split config")],
    out_file: Annotated[Path | None, typer.Option("--out", help="File to write")] = None,
    kind: Annotated[ReportFormat, typer.Option("--format", help="What to write")] = "html",
    chart: Annotated[ChartName, typer.Option(help="For svg and png")] = "leakage",
    debug: Debug = False,
) -> None:
    """Write a result as a page, Markdown, a chart or CSV."""
    from ..arguments.outputs import writable
    from ..config import SplitConfig
    from ..reporting.report import write

    path = out_file or split.with_name(split.name.removesuffix(".split.json") + f".report.{kind}")
    config = SplitConfig.read(split)
    write(config, kind, writable(path, "out"), chart)
    err.print(f"report: {path}", highlight=False, markup=False)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Split config")],
    b: Annotated[Path, typer.Argument(help="Split config")],
    profile: ProfileFile = None,
    debug: Debug = False,
) -> None:
    """Put two results side by side.

    By their own times or by those of one profile.
    """
    from ..config import SplitConfig
    from ..profilers.target import TargetProfile
    from ..reporting.compare import compare as side_by_side

    target = None if profile is None else TargetProfile.read(profile)
    show(side_by_side(SplitConfig.read(a), SplitConfig.read(b), target))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a split config."""
    from ..config import json_schema

    written(json.dumps(json_schema(), indent=2) + "\n")
