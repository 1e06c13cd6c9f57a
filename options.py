"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Three = Annotated[str | None, typer.Option(help="One number or three, separated by commas")]
OneCut = Annotated[str, typer.Option(help="Name of a cut, as partopt cuts lists them")]
Weights = Annotated[str, typer.Option(help="As for find")]
Data = Annotated[Path | None, typer.Option(help="As for find")]
Budget = Annotated[str | None, typer.Option(help="quick, standard or full")]
Resolution = Annotated[int | None, typer.Option(help="Side in pixels")]
Accelerator = Annotated[str, typer.Option(help="Where attacks train: auto, cuda, cpu")]
Seed = Annotated[int, typer.Option(help="Seed of everything random")]
Strict = Annotated[bool, typer.Option("--strict", help="As for find")]
InputSize = Annotated[int | None, typer.Option(help="As for find")]
ConcreteArgs = Annotated[
    str | None,
    typer.Option(help="Arguments of forward to fix, e.g. mask=None,features=false [defaults]"),
]
LeafModules = Annotated[
    str | None,
    typer.Option(help="Classes of modules to keep as one node: package.module.Class,..."),
]
