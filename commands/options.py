"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from ..arguments.choices import (
    AcceleratorName,
    BudgetName,
    EnclaveName,
    EngineName,
    KindOfCuts,
    ProtocolName,
    ScaleName,
)

Three = Annotated[str | None, typer.Option(help="One number or three, separated by commas")]
OneCut = Annotated[str, typer.Option(help="Name of a cut, as partopt cuts lists them")]
Weights = Annotated[
    str | None,
    typer.Option(
        help="DEFAULT, none (random) or a file: state dict, safetensors; FILE#KEY names one "
        "dictionary of several [DEFAULT]"
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder of images, or ton-iot:FOLDER; none: generated images"),
]
Protocol = Annotated[
    ProtocolName | None,
    typer.Option(help="paper: c-GAN alone, raw SSIM, the published points and rule [strict]"),
]
Scale = Annotated[
    ScaleName | None,
    typer.Option(help="corrected: above the floor; raw: as the published rule [corrected]"),
]
Budget = Annotated[
    BudgetName | None, typer.Option(help="quick only screens, and is the default without a GPU")
]
Resolution = Annotated[
    int | None, typer.Option(help="Side in pixels at which images are rebuilt and scored")
]
Enclave = Annotated[
    EnclaveName | None,
    typer.Option(help="Where the head is timed; auto is the strongest there is [auto]"),
]
Accelerator = Annotated[
    AcceleratorName | None,
    typer.Option(help="Where the tail is timed and attacks train [auto]"),
]
Engine = Annotated[
    EngineName | None,
    typer.Option(help="What runs the head; auto: ONNX Runtime (ort) if it is faster [torch]"),
]
SgxModelText = Annotated[
    str | None,
    typer.Option(
        "--sgx-model",
        help="Scale native enclave times: 'default' or slowdown=1.5,transition_us=8,"
        "transitions=10,epc_mib=128,paging_ms_per_mib=1; labelled modelled",
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(
        envvar="PARTOPT_STORAGE",
        help="A .journal file or a database URL; default: the cache folder",
    ),
]
Artifacts = Annotated[
    str | None,
    typer.Option(help="Where a fleet keeps pictures: a folder or s3://BUCKET [the cache folder]"),
]
Threads = Annotated[
    int | None, typer.Option(help="Compute threads on both sides of the profile [1]")
]
Batch = Annotated[int | None, typer.Option(help="Images a run in the profile [1]")]
Depth = Annotated[int | None, typer.Option(help="Module depth of a stage")]
Repetitions = Annotated[int | None, typer.Option(help="Timed runs; medians are reported [20]")]
ProfileFile = Annotated[
    Path | None,
    typer.Option(
        "--profile", help="Take times from this file of partopt profile; none are taken here"
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random [0]")]
RequireWeights = Annotated[
    bool, typer.Option("--require-weights", help="Fail when default weights cannot be had")
]
TrustModel = Annotated[
    bool, typer.Option("--trust-model", help="Allow a .pt2 file, whose loader may run code")
]
TrustStoredModel = Annotated[
    bool,
    typer.Option(
        "--trust-model",
        help="Run code that the split config names: a factory, or a .pt2 file's loader",
    ),
]
InputSize = Annotated[int | None, typer.Option(help="Side of the model's input, pixels")]
MaxCuts = Annotated[int | None, typer.Option(help="Most cuts for clean and all [24]")]
ConcreteArgs = Annotated[
    str | None,
    typer.Option(help="Arguments of forward to fix, e.g. mask=None,features=false [defaults]"),
]
LeafModules = Annotated[
    str | None,
    typer.Option(help="Classes of modules to keep as one node: package.module.Class,..."),
]


def _renamed(given: bool) -> None:
    if given:
        from ..errors import UsageError

        raise UsageError("`strict` is called --require-weights now; give that instead")


OldStrict = Annotated[bool, typer.Option("--strict", hidden=True, callback=_renamed)]
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


WorstShare = Annotated[
    float | None,
    typer.Option(help="Largest share of images that may pass the threshold on their own [any]"),
]
WorstRetrieval = Annotated[
    float | None,
    typer.Option(help="Largest share of images that may be picked out by their picture [any]"),
]
AdversaryImages = Annotated[
    int | None,
    typer.Option(help="Images that the adversary has to learn from [ten times yours]"),
]


def kind_of_cuts(text: str) -> str | list[str]:
    """A kind of cuts, or names of nodes, as given to ``--cuts``."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    return names[0] if len(names) == 1 and names[0] in get_args(KindOfCuts) else names
