"""The commands for a study: what the data looks like, and the published tables. No logic."""

from __future__ import annotations

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
    OldStrict,
    OneCut,
    RequireWeights,
    Resolution,
    Seed,
    SgxModelText,
    Storage,
    Three,
    Weights,
)

if TYPE_CHECKING:
    from ..studies.reproduce import ReproduceOptions
    from ..studies.strength import StrengthOptions

app = typer.Typer()


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
    folder(out_folder, "out")
    given: ReproduceOptions = {
        "weights": weights,
        "require_weights": require_weights,
        "data": data,
        "budget": budget,
        "enclave": enclave,
        "accelerator": accelerator,
        "sgx_model": sgx_model,
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
                shlex.join(["partopt", *sys.argv[1:]]),
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
