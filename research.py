"""The commands for a study: what the data looks like, and the published tables. No logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import Debug, Shown, err, show

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
    from .datasets import load_images
    from .optimizer.budgets import pick
    from .optimizer.floor import floor_of
    from .preprocessing import Preprocessing
    from .reporting import samples

    chosen = pick(budget)
    how = Preprocessing(input_size=input_size, resize=round(input_size * 256 / 224))
    with Shown() as shown:
        shown.stage("reading the data")
        given = f"{source}:." if source == "ton-iot" else source
        images = load_images(given, how, chosen.split, seed=seed, minimum=3)
        shown.stage("measuring the floor")
        side = min(resolution, input_size)
        floor = floor_of(images, side, seed)
    show(samples.table(images, float(floor.mean()), side))
    if preview:
        samples.preview(images).save(out_file, format="PNG")
        err.print(f"samples: {out_file}", highlight=False, markup=False)
