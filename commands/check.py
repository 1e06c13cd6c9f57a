"""The command that holds a cut to its policy again: check. No logic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import (
    AsJson,
    Debug,
    Shown,
    numbers,
    show,
    written,
)
from .options import (
    AdversaryImages,
    Budget,
    Data,
    InputSize,
    MaxCuts,
    ProfileFile,
    Protocol,
    Resolution,
    Scale,
    Seed,
    Storage,
    Three,
    TrustStoredModel,
    WorstRetrieval,
    WorstShare,
    kind_of_cuts,
)

if TYPE_CHECKING:
    from ..optimizer.check_request import CheckOptions

app = typer.Typer()


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
    worst_share: WorstShare = None,
    worst_retrieval: WorstRetrieval = None,
    adversary_images: AdversaryImages = None,
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
    profile: ProfileFile = None,
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
    trust_model: TrustStoredModel = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check that split configs still hold for their models.

    Exits with 0 where they hold, 4 on a privacy regression, 5 where the cut moved or is slower, 1
    where that could not be decided.
    """
    from ..arguments.numbers import names
    from ..arguments.outputs import writable
    from ..optimizer.check import check_all, worst
    from ..optimizer.policy import Policy
    from ..reporting import checks

    for name, file in (("junit", junit), ("markdown", markdown)):
        if file is not None:
            writable(file, name, replaced=False)
    terms = Policy(
        protocol=protocol,
        ssim=ssim,
        budget=budget,
        attackers=names("attackers", attackers),
        cuts=None if cuts is None else kind_of_cuts(cuts),
        max_cuts=max_cuts,
        resolution=resolution,
        scale=scale,
        worst_share=worst_share,
        worst_retrieval=worst_retrieval,
        adversary_images=adversary_images,
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
        "profile": profile,
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
