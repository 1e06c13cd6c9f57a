"""The commands for a study: what the data looks like, and the published tables. No logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import AsJson, Debug, Shown, err, integers, numbers, show, written
from .options import (
    Accelerator,
    Budget,
    ConcreteArgs,
    Data,
    InputSize,
    LeafModules,
    OneCut,
    Resolution,
    Seed,
    Strict,
    Three,
    Weights,
)

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
    budget: Annotated[str, typer.Option(help="quick, standard or full: how many images")] = "quick",
    resolution: Annotated[int, typer.Option(help="Side in pixels, for the floor")] = 96,
    input_size: Annotated[int, typer.Option(help="Side of the model's input, pixels")] = 224,
    seed: Annotated[int, typer.Option(help="Decides which images go where")] = 0,
    debug: Debug = False,
) -> None:
    """Show what a run would be given as --data: classes, split, what was odd, and the floor."""
    from .arguments import SIZES, whole
    from .arguments import seed as hold_seed
    from .datasets import load_images
    from .optimizer.budgets import pick
    from .optimizer.floor import floor_of
    from .outputs import writable
    from .preprocessing import Preprocessing
    from .reporting import samples

    whole("input_size", input_size, *SIZES)
    whole("resolution", resolution, SIZES[0])
    hold_seed(seed)
    if preview:
        writable(out_file, "out", replaced=False)
    chosen = pick(budget)
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
    weights: Annotated[str, typer.Option(help="As for find; a file fits one model")] = "DEFAULT",
    data: Annotated[
        Path | None, typer.Option(help="As for find; ton-iot:FOLDER gives figure 8")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="quick is reduced (labelled), standard the published size; default: quick without "
            "a GPU"
        ),
    ] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the files")] = Path(
        "reproduce"
    ),
    enclave: Annotated[str, typer.Option(help="As for find")] = "auto",
    accelerator: Annotated[str, typer.Option(help="As for find")] = "auto",
    sgx_model: Annotated[str | None, typer.Option(help="As for find")] = None,
    storage: Annotated[str | None, typer.Option(help="As for find")] = None,
    seed: Seed = 0,
    strict: Strict = False,
    debug: Debug = False,
) -> None:
    """Redraw the published tables and figures, with our own panel's verdict beside them."""
    import shlex
    import sys

    from .errors import UsageError
    from .optimizer.published import MODELS
    from .optimizer.reproduce import reproduce as run
    from .outputs import folder
    from .reporting import reproduced

    for name, given, known in (
        ("table", table, reproduced.TABLES),
        ("figure", figure, reproduced.FIGURES),
    ):
        if wrong := set(given or []) - set(known):
            raise UsageError(f"`{name}` got {min(wrong)}; use some of {', '.join(map(str, known))}")
    names = model or list(MODELS)
    if weights not in ("DEFAULT", "none") and len(names) > 1:
        raise UsageError(
            f"`weights` got {weights!r} for {len(names)} models; name one with --model"
        )
    folder(out_folder, "out")
    studies = []
    with Shown() as shown:
        for name in names:
            studies.append(
                run(
                    name,
                    weights=weights,
                    data=data,
                    cut=cut,
                    budget=budget,
                    enclave=enclave,
                    accelerator=accelerator,
                    sgx_model=sgx_model,
                    storage=storage,
                    seed=seed,
                    strict=strict,
                    watcher=shown,
                )
            )
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
    weights: Weights = "DEFAULT",
    data: Data = None,
    budget: Budget = None,
    resolution: Resolution = None,
    accelerator: Accelerator = "auto",
    chart: Annotated[Path | None, typer.Option(help="SVG or PNG to draw")] = None,
    seed: Seed = 0,
    strict: Strict = False,
    mean: Three = None,
    std: Three = None,
    input_size: InputSize = None,
    concrete_args: ConcreteArgs = None,
    leaf_modules: LeafModules = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score of an attack by its data and its epochs: would more of them break the cut?"""
    import json

    from .arguments import names
    from .errors import UsageError
    from .optimizer.strength import strength as run
    from .outputs import writable
    from .reporting import strengths
    from .traceargs import Tracing

    if not 0 < ssim <= 1:
        raise UsageError(f"`ssim` got {ssim}; use a threshold above 0 and at most 1")
    if chart is not None:
        strengths.drawable(chart)
        writable(chart, "chart", replaced=False)
    with Shown() as shown:
        found = run(
            model,
            cut,
            images=integers("images", images),
            epochs=integers("epochs", epochs),
            attackers=names("attackers", attackers),
            ssim=ssim,
            weights=weights,
            data=data,
            budget=budget,
            resolution=resolution,
            accelerator=accelerator,
            seed=seed,
            strict=strict,
            mean=numbers("mean", mean),
            std=numbers("std", std),
            input_size=input_size,
            tracing=Tracing.parse(concrete_args, leaf_modules),
            watcher=shown,
        )
    if chart is not None:
        strengths.chart(found, chart)
        err.print(f"chart: {chart}", highlight=False, markup=False)
    if as_json:
        written(json.dumps(strengths.as_dict(found), indent=2) + "\n")
    else:
        show(strengths.table(found))
