"""Time all cuts of a model on this machine, for a `find` that runs elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

from ..arguments.choices import AcceleratorName, EnclaveName, EngineName, known_names
from ..graph.build import Cut
from ..models.load import load
from ..models.request import MODEL_NAMES, ModelOptions, ModelRequest
from ..optimizer.requests import CutChoice, Timing
from ..optimizer.watcher import Silent, Watcher
from ..profilers.machine import this_machine
from ..profilers.profile import profile
from ..profilers.target import TargetProfile


class ProfileOptions(ModelOptions, total=False):
    """What `profile_model` takes as keyword arguments, as `find` does; None is the default."""

    cuts: str | Sequence[str] | None
    max_cuts: int | None
    depth: int | None
    enclave: EnclaveName | None
    accelerator: AcceleratorName | None
    engine: EngineName | None
    threads: int | None
    batch: int | None
    repetitions: int | None
    machine: str | None


@dataclass(frozen=True)
class Profiled:
    """A profile of all cuts, and those of them that were asked for.

    Attributes:
        target: What the file holds: every cut of the graph.
        shown: The cuts asked for, in execution order.
        indices: Where in the profile they stand.
        warnings: What must be said of the model and of the times.
    """

    target: TargetProfile
    shown: list[Cut]
    indices: list[int]
    warnings: list[str]


def profile_model(
    model: str, *, watcher: Watcher | None = None, **options: Unpack[ProfileOptions]
) -> Profiled:
    """Time every cut of `model` from one instrumented pass a repetition; nothing is attacked.

    Args:
        model: A model spec, as for `find`.
        watcher: Is told of progress.
        options: As for `find`, see `ProfileOptions`. ``cuts`` (clean, 24 at most, unless given)
            only says which are shown. ``machine`` is what results call this machine, in place of
            its host name.

    Raises:
        UsageError: A wrong argument.
        BackendError: A backend that this machine lacks.
    """
    given = known_names("profile_model", options, ProfileOptions.__annotations__ | _MODEL)
    watcher = watcher or Silent()

    def taken(*names: str) -> dict[str, object]:
        return {n: given[n] for n in names if n in given}

    which = CutChoice(**taken("cuts", "max_cuts", "depth"))  # type: ignore[arg-type]
    timing = Timing(
        **taken("enclave", "accelerator", "engine", "threads", "batch", "repetitions")  # type: ignore[arg-type]
    )
    seed = int(given.get("seed", 0))
    how = timing.conditions(seed)
    watcher.stage("loading and tracing the model")
    asked = ModelRequest(spec=model, **{n: given[n] for n in MODEL_NAMES & given.keys()})
    loaded = load(asked)
    graph = loaded.trace()
    shown = graph.cuts(which.cuts or "clean", max_cuts=which.max_cuts, depth=which.depth)
    every = graph.cuts("all")
    watcher.stage(f"timing all {len(every)} cuts")
    measured = profile(graph, every, how, progress=lambda s: watcher.progress("profile", s))
    how = replace(how, engine=measured.engine)
    assert measured.taken is not None
    if "machine" in given:
        named = this_machine(str(given["machine"]))
        measured.taken = measured.taken.model_copy(update={"machine": named})
    target = TargetProfile.of(graph, every, measured, how, spec=loaded.spec, weights=loaded.weights)
    at = {cut.node: i for i, cut in enumerate(every)}
    return Profiled(
        target=target,
        shown=shown,
        indices=[at[cut.node] for cut in shown],
        warnings=[*loaded.warnings, *target.warnings],
    )


_MODEL = ModelOptions.__annotations__
