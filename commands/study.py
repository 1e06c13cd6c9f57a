"""Studies: attack, strength, reproduce, and what the data looks like. No logic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..arguments.choices import BudgetName
from .console import AsJson, Debug, Shown, err, integers, numbers, show, written
from .options import (
    Accelerator,
    Budget,
    ConcreteArgs,
    Data,
    Enclave,
    InputSize,
    LeafModules,
    Model,
    OldStrict,
    OneCut,
    ProfileFile,
    RequireWeights,
    Resolution,
    Seed,
    SgxModelText,
    Storage,
    Three,
    TrustModel,
    Weights,
)

if TYPE_CHECKING:
    from ..optimizer.requests import AttackOptions
    from ..studies.reproduce import ReproduceOptions
    from ..studies.strength import StrengthOptions

app = typer.Typer()


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
    from ..arguments.outputs import writable
    from ..errors import UsageError
    from ..graph.traceargs import Tracing
    from ..reporting.attacked import as_dict, table
    from ..studies.single import attack_cut

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
def data(
    source: Annotated[
        str, typer.Argument(help="ton-iot (in this folder), ton-iot:FOLDER or a folder of images")
    ],
    preview: Annotated[
        bool, typer.Option("--preview", help="Write a sheet of samples of each class")
    ] = False,
    out_file: Annotated[Path, typer.Option("--out", help="PNG for the samples")] = Path(
        "samples.png"
    ),
    budget: Annotated[BudgetName, typer.Option(help="Decides how many images")] = "quick",
    resolution: Annotated[int, typer.Option(help="Side in pixels, for the floor")] = 96,
    input_size: Annotated[int, typer.Option(help="Side of the model's input, pixels")] = 224,
    seed: Annotated[int, typer.Option(help="Decides which images go where")] = 0,
    debug: Debug = False,
) -> None:
    """Show what a run would be given as --data.

    Classes, split, what was odd, and the floor.
    """
    from ..arguments.numbers import SIZES, whole
    from ..arguments.numbers import seed as hold_seed
    from ..arguments.outputs import writable
    from ..images.load import load_images
    from ..optimizer.budgets import budget_of
    from ..optimizer.floor import floor_of
    from ..preprocessing import Preprocessing
    from ..reporting import samples

    whole("input_size", input_size, *SIZES)
    whole("resolution", resolution, SIZES[0])
    hold_seed(seed)
    if preview:
        writable(out_file, "out", replaced=False)
    chosen = budget_of(budget)
    how = Preprocessing(input_size=input_size, resize=round(input_size * 256 / 224))
    with Shown() as shown:
        shown.stage("reading the data")
        given = f"{source}:." if source == "ton-iot" else source
        images = load_images(given, how, chosen.split, seed=seed, minimum=3)
        shown.stage("measuring the floor")
        side = min(resolution, input_size)
        floor = floor_of(images, side, seed)
    if preview:
        samples.preview(images).save(out_file, format="PNG")
    show(samples.table(images, float(floor.mean()), side))
    if preview:
        err.print(f"samples: {out_file}", highlight=False, markup=False)


@app.command()
def reproduce(
    model: Annotated[
        list[str] | None,
        typer.Option(help="vgg16, resnet50, efficientnet_b0 or a relative of theirs [all three]"),
    ] = None,
    table: Annotated[list[int] | None, typer.Option(help="1, 2 or 3 [all]")] = None,
    figure: Annotated[list[int] | None, typer.Option(help="3 to 8 [all]")] = None,
    cut: Annotated[str | None, typer.Option(help="One point: its number or its name")] = None,
    weights: Annotated[
        str | None, typer.Option(help="As for find; a file fits one model [DEFAULT]")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="As for find; ton-iot:FOLDER gives figure 8")
    ] = None,
    budget: Annotated[
        BudgetName | None,
        typer.Option(
            help="quick is reduced (labelled), and the default without a GPU; standard has the "
            "published size"
        ),
    ] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the files")] = Path(
        "reproduce"
    ),
    enclave: Enclave = None,
    accelerator: Accelerator = None,
    sgx_model: SgxModelText = None,
    profile: ProfileFile = None,
    storage: Storage = None,
    seed: Seed = None,
    require_weights: RequireWeights = False,
    strict: OldStrict = False,
    debug: Debug = False,
) -> None:
    """Redraw the published tables and figures, with our verdict."""
    import shlex
    import sys

    from ..arguments.outputs import folder
    from ..errors import UsageError
    from ..optimizer.urls import told
    from ..reporting import reproduced
    from ..studies.published import MODELS
    from ..studies.reproduce import reproduce as run

    for name, numbered, known in (
        ("table", table, reproduced.TABLES),
        ("figure", figure, reproduced.FIGURES),
    ):
        if wrong := set(numbered or []) - set(known):
            raise UsageError(f"`{name}` got {min(wrong)}; use some of {', '.join(map(str, known))}")
    names = model or list(MODELS)
    if weights not in (None, "DEFAULT", "none") and len(names) > 1:
        raise UsageError(
            f"`weights` got {weights!r} for {len(names)} models; name one with --model"
        )
    if profile is not None and len(names) > 1:
        raise UsageError(
            f"`profile` got {str(profile)!r} for {len(names)} models; name one with --model"
        )
    folder(out_folder, "out")
    given: ReproduceOptions = {
        "weights": weights,
        "require_weights": require_weights,
        "data": data,
        "budget": budget,
        "enclave": enclave,
        "accelerator": accelerator,
        "sgx_model": sgx_model,
        "profile": profile,
        "storage": storage,
        "seed": seed,
    }
    studies = []
    with Shown() as shown:
        for name in names:
            studies.append(run(name, cut=cut, watcher=shown, **given))
            files = reproduced.write(
                studies,
                out_folder,
                table or reproduced.TABLES if not figure or table else (),
                figure or reproduced.FIGURES if not table or figure else (),
                shlex.join(["partopt", *told(sys.argv[1:])]),
            )
    for path in files:
        err.print(str(path), highlight=False, markup=False)


@app.command()
def strength(
    model: Annotated[str, typer.Option(help="As for find")],
    cut: OneCut,
    images: Annotated[
        str | None, typer.Option(help="Numbers of training images [100 and its doublings, all]")
    ] = None,
    epochs: Annotated[
        str | None, typer.Option(help="Numbers of epochs [a third of the budget's, and all]")
    ] = None,
    attackers: Annotated[str | None, typer.Option(help="As for find")] = None,
    ssim: Annotated[float, typer.Option(help="Threshold that a rise is held against")] = 0.2,
    weights: Weights = None,
    data: Data = None,
    budget: Budget = None,
    resolution: Resolution = None,
    accelerator: Accelerator = None,
    chart: Annotated[Path | None, typer.Option(help="SVG or PNG to draw")] = None,
    seed: Seed = None,
    require_weights: RequireWeights = False,
    mean: Three = None,
    std: Three = None,
    input_size: InputSize = None,
    concrete_args: ConcreteArgs = None,
    leaf_modules: LeafModules = None,
    strict: OldStrict = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say whether more data or epochs would break a cut."""
    import json

    from ..arguments.outputs import writable
    from ..errors import UsageError
    from ..graph.traceargs import Tracing
    from ..reporting import strengths
    from ..studies.strength import strength as run

    if not 0 < ssim <= 1:
        raise UsageError(f"`ssim` got {ssim}; use a threshold above 0 and at most 1")
    if chart is not None:
        strengths.drawable(chart)
        writable(chart, "chart", replaced=False)
    given: StrengthOptions = {
        "attackers": attackers,
        "ssim": ssim,
        "weights": weights,
        "data": data,
        "budget": budget,
        "resolution": resolution,
        "accelerator": accelerator,
        "seed": seed,
        "require_weights": require_weights,
        "mean": numbers("mean", mean),
        "std": numbers("std", std),
        "input_size": input_size,
        "tracing": Tracing.parse(concrete_args, leaf_modules),
    }
    counts = integers("images", images), integers("epochs", epochs)
    with Shown() as shown:
        found = run(model, cut, images=counts[0], epochs=counts[1], watcher=shown, **given)
    if chart is not None:
        strengths.chart(found, chart)
        err.print(f"chart: {chart}", highlight=False, markup=False)
    if as_json:
        written(json.dumps(strengths.as_dict(found), indent=2) + "\n")
    else:
        show(strengths.table(found))
