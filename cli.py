"""The command line: commands, their options, progress and exit codes; no logic.

Exit codes: 0 found or holds, 1 the run failed or could not be decided, 2 wrong usage, 3 no safe
cut, 4 privacy regression, 5 cut moved or latency regressed, 6 not splitting is at least as fast,
130 interrupted. `serve` ends with 0 on SIGTERM, as service managers stop a service, and with 130 on
Ctrl-C; both clean up.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from .arguments.choices import ChartName, KindOfCuts, ReportFormat
from .commands import deploy as commands
from .commands import study as study_commands
from .commands.console import (
    AsJson,
    Debug,
    Interrupts,
    Shown,
    err,
    numbers,
    out,
    show,
    tell_notices,
    written,
)
from .commands.options import (
    Accelerator,
    Budget,
    ConcreteArgs,
    Data,
    Enclave,
    InputSize,
    LeafModules,
    MaxCuts,
    OldStrict,
    OneCut,
    Protocol,
    RequireWeights,
    Resolution,
    Scale,
    Seed,
    SgxModelText,
    Storage,
    Three,
    TrustModel,
    Weights,
)
from .errors import nearest

if TYPE_CHECKING:
    from .optimizer.check_request import CheckOptions
    from .optimizer.find import SplitResult
    from .optimizer.requests import AttackOptions, FindOptions


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Find where to part a neural network between an enclave and an untrusted accelerator.",
)
app.add_typer(commands.app)
app.add_typer(study_commands.app)
# GNU OpenMP's threads spin for milliseconds at every barrier, which on a busy machine multiplies
# training times; short spins cost a few per cent on a quiet one. Read when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
DO_NOT_SPLIT = 6
INTERRUPTED = 130  # as shells number it: 128 + SIGINT

Model = Annotated[
    str,
    typer.Option(
        help="efficientnet_b0 (torchvision), timm:NAME, package.module:factory or FILE.pt2"
    ),
]
Settings = Annotated[
    Path | None,
    typer.Option("--config", help="partopt.toml, or pyproject.toml with [tool.partopt]"),
]


def _kind_of_cuts(text: str) -> str | list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    return names[0] if len(names) == 1 and names[0] in get_args(KindOfCuts) else names


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
    attackers: Annotated[
        str | None, typer.Option(help="Names separated by commas; default: the budget's panel")
    ] = None,
    enclave: Enclave = None,
    accelerator: Accelerator = None,
    sgx_model: SgxModelText = None,
    threads: Annotated[
        int | None, typer.Option(help="Compute threads on both sides of the profile [1]")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images a run in the profile [1]")] = None,
    repetitions: Annotated[int, typer.Option(help="Timed runs; medians are reported")] = 20,
    tune: Annotated[
        int | None,
        typer.Option(help="Settings tried for each attacker at the cut and the one before [0]"),
    ] = None,
    storage: Storage = None,
    workers: Annotated[int, typer.Option(help="Attacks at a time")] = 1,
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
    not splitting is no slower.
    """
    from .arguments.outputs import writable
    from .graph.traceargs import Tracing
    from .models.load import short_name
    from .optimizer.find import find_cut
    from .optimizer.requests import FindRequest
    from .settings import for_find

    target = writable(out_file or Path(f"{short_name(model)}.split.json"), "out")
    given: FindOptions = {
        "ssim": ssim,
        "weights": weights,
        "data": data,
        "protocol": protocol,
        "cuts": None if cuts is None else _kind_of_cuts(cuts),
        "max_cuts": max_cuts,
        "depth": depth,
        "budget": budget,
        "resolution": resolution,
        "scale": scale,
        "attackers": attackers,
        "enclave": enclave,
        "accelerator": accelerator,
        "sgx_model": sgx_model,
        "threads": threads,
        "batch": batch,
        "repetitions": repetitions,
        "tune": tune,
        "storage": storage,
        "workers": workers,
        "seed": seed,
        "require_weights": require_weights or None,
        "trust_model": trust_model,
        "mean": numbers("mean", mean),
        "std": numbers("std", std),
        "input_size": input_size,
        "tracing": Tracing.parse(concrete_args, leaf_modules),
        "feature_cache_gib": feature_cache,
        "command": shlex.join(["partopt", *sys.argv[1:]]),
    }
    request = FindRequest.of(model, for_find(model, given, settings))
    with Shown() as shown:
        result = find_cut(request, shown)
    _report(result, target, as_json)


def _report(result: SplitResult, path: Path, as_json: bool) -> None:
    from .reporting.table import render

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

    from .arguments.numbers import whole
    from .graph.traceargs import Tracing
    from .models.load import load
    from .models.request import ModelRequest
    from .reporting.table import render_graph

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
    listed = graph.cuts(_kind_of_cuts(kind), max_cuts=max_cuts, depth=depth)
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
def attack(
    model: Model,
    cut: OneCut,
    attackers: Annotated[
        str | None,
        typer.Option(help="linear, newton, decoder, cgan, rmle, hybrid, ensemble or a plug-in's"),
    ] = None,
    weights: Weights = None,
    data: Data = None,
    budget: Budget = None,
    resolution: Resolution = None,
    accelerator: Accelerator = None,
    images_out: Annotated[
        Path | None, typer.Option(help="PNG: originals over reconstructions")
    ] = None,
    show_folder: Annotated[
        Path | None,
        typer.Option(
            "--show", help="Folder of pictures for --images-out, not scored [test images]"
        ),
    ] = None,
    seed: Seed = None,
    require_weights: RequireWeights = False,
    trust_model: TrustModel = False,
    mean: Three = None,
    std: Three = None,
    input_size: InputSize = None,
    concrete_args: ConcreteArgs = None,
    leaf_modules: LeafModules = None,
    strict: OldStrict = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run attackers on one cut: scores beside the floor, pictures."""
    from .arguments.outputs import writable
    from .errors import UsageError
    from .graph.traceargs import Tracing
    from .reporting.attacked import as_dict, table
    from .studies.single import attack_cut

    if show_folder is not None and images_out is None:
        raise UsageError(f"`show` got {str(show_folder)!r}, which needs --images-out; add it")
    if images_out is not None:
        writable(images_out, "images-out", replaced=False)
    given: AttackOptions = {
        "attackers": attackers,
        "weights": weights,
        "data": data,
        "budget": budget,
        "resolution": resolution,
        "accelerator": accelerator,
        "seed": seed,
        "require_weights": require_weights,
        "trust_model": trust_model,
        "mean": numbers("mean", mean),
        "std": numbers("std", std),
        "input_size": input_size,
        "tracing": Tracing.parse(concrete_args, leaf_modules),
    }
    with Shown() as shown:
        found = attack_cut(model, cut, show=show_folder, watcher=shown, **given)
    if images_out is not None:
        found.save(images_out)
    if as_json:
        written(json.dumps(as_dict(found), indent=2) + "\n")
    else:
        show(table(found))
    if images_out is not None:
        err.print(f"pictures: {images_out}", highlight=False, markup=False)
    if found.strongest is None or any(r.score is None for r in found.results):
        raise typer.Exit(1)


@app.command()
def check(
    splits: Annotated[
        list[Path] | None, typer.Argument(help="Split configs; none: those of the settings file")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Another model than the stored one")] = None,
    weights: Annotated[str | None, typer.Option(help="Other weights than the stored ones")] = None,
    data: Data = None,
    protocol: Protocol = None,
    ssim: Annotated[float | None, typer.Option(help="As for find")] = None,
    budget: Budget = None,
    attackers: Annotated[str | None, typer.Option(help="As for find")] = None,
    cuts: Annotated[str | None, typer.Option(help="As for find: all of them are judged")] = None,
    max_cuts: MaxCuts = None,
    resolution: Resolution = None,
    scale: Scale = None,
    seed: Seed = None,
    mean: Three = None,
    std: Three = None,
    input_size: InputSize = None,
    no_attack: Annotated[
        bool, typer.Option("--no-attack", help="Never attack: what was not attacked is undecided")
    ] = False,
    reattack: Annotated[
        bool, typer.Option("--reattack", help="Attack anew, and use nothing that is cached")
    ] = False,
    trust_stored: Annotated[
        bool,
        typer.Option(
            "--trust-stored",
            help="Believe a split config's own figures, if its terms are the policy's",
        ),
    ] = False,
    new_data: Annotated[
        bool, typer.Option("--new-data", help="Accept other images and attack on them")
    ] = False,
    no_latency: Annotated[bool, typer.Option("--no-latency", help="For shared runners")] = False,
    latency_tolerance: Annotated[
        float | None, typer.Option(help="Growth of the ratio to the full-enclave time [0.15]")
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            "--config", help="The policy: partopt.toml, or none; default: the working folder's"
        ),
    ] = None,
    under_test: Annotated[
        Path | None,
        typer.Option(help="Folder of the policy's split and weights; default: the policy's own"),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown")] = None,
    storage: Storage = None,
    workers: Annotated[int, typer.Option(help="Attacks at a time")] = 1,
    trust_model: TrustModel = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check that split configs still hold for their models.

    Exits with 0 where they hold, 4 on a privacy regression, 5 where the cut moved or is slower, 1
    where that could not be decided.
    """
    from .arguments.numbers import names
    from .arguments.outputs import writable
    from .optimizer.check import check_all, worst
    from .optimizer.policy import Policy
    from .reporting import checks

    for name, file in (("junit", junit), ("markdown", markdown)):
        if file is not None:
            writable(file, name, replaced=False)
    terms = Policy(
        protocol=protocol,
        ssim=ssim,
        budget=budget,
        attackers=names("attackers", attackers),
        cuts=None if cuts is None else _kind_of_cuts(cuts),
        max_cuts=max_cuts,
        resolution=resolution,
        scale=scale,
        seed=seed,
        mean=numbers("mean", mean),
        std=numbers("std", std),
        input_size=input_size,
        trust_stored=trust_stored or None,
    )
    given: CheckOptions = {
        "model": model,
        "weights": weights,
        "data": data,
        "attack": not no_attack,
        "reattack": reattack,
        "new_data": new_data,
        "latency": False if no_latency else None,
        "latency_tolerance": latency_tolerance,
        "storage": storage,
        "workers": workers,
        "trust_model": trust_model,
    }
    with Shown() as shown:
        results = check_all(
            splits or [], settings, under_test=under_test, terms=terms, watcher=shown, **given
        )
    for path, render in ((junit, checks.junit), (markdown, checks.markdown)):
        if path is not None:
            path.write_text(render(results))
    if as_json:
        written(checks.as_json(results))
    else:
        show(checks.table(results))
    raise typer.Exit(worst([r.exit_code for r in results]))


@app.command()
def report(
    split: Annotated[Path, typer.Argument(help="Split config")],
    out_file: Annotated[Path | None, typer.Option("--out", help="File to write")] = None,
    kind: Annotated[ReportFormat, typer.Option("--format", help="What to write")] = "html",
    chart: Annotated[ChartName, typer.Option(help="For svg and png")] = "leakage",
    debug: Debug = False,
) -> None:
    """Write a result as a page, Markdown, a chart or CSV."""
    from .arguments.outputs import writable
    from .config import SplitConfig
    from .reporting.report import write

    path = out_file or split.with_name(split.name.removesuffix(".split.json") + f".report.{kind}")
    config = SplitConfig.read(split)
    write(config, kind, writable(path, "out"), chart)
    err.print(f"report: {path}", highlight=False, markup=False)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Split config")],
    b: Annotated[Path, typer.Argument(help="Split config")],
    debug: Debug = False,
) -> None:
    """Put two results side by side."""
    from .config import SplitConfig
    from .reporting.compare import compare as side_by_side

    show(side_by_side(SplitConfig.read(a), SplitConfig.read(b)))


@app.command()
def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Say what this machine has, and what each lack costs.

    Looks for torch, a GPU, SGX, Gramine and the caches.
    """
    from dataclasses import asdict

    from rich.text import Text

    from .enclave_runner.doctor import examine

    findings = examine()
    if as_json:
        written(json.dumps([asdict(f) for f in findings], indent=2) + "\n")
        return
    for finding in findings:
        mark = f"{finding.state:<7}", "green" if finding.state == "ok" else "yellow"
        line = Text.assemble(mark, f" {finding.name:<18} {finding.detail}")
        out.print(line, soft_wrap=True)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a split config."""
    from .config import json_schema

    written(json.dumps(json_schema(), indent=2) + "\n")


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
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if isinstance(error, OSError) and error.strerror:
        where = f" at {error.filename!r}" if error.filename else ""
        _say(f"the system refused{where}: {error.strerror.lower()}; --debug shows where")
        return 1
    if isinstance(error, MemoryError):
        _say("there is not enough memory; use a smaller --budget, --input-size or --batch")
        return 1
    _say(f"{type(error).__name__}: {first} (this is a bug; --debug shows where)")
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
