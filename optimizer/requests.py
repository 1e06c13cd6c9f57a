"""What a run is asked for: frozen records, each of which checks its own values.

    FindRequest ── model: ModelRequest or LoadedModel
                ├─ which_cuts: CutChoice
                ├─ images: ImageChoice
                ├─ effort: Effort
                ├─ timing: Timing
                └─ adversary: Adversary

Command line, settings file and Python calls fill them, by the names in `FindOptions`; everything
below takes them whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ..arguments import numbers as arguments
from ..arguments.choices import (
    AcceleratorName,
    BudgetName,
    EnclaveName,
    EngineName,
    ProtocolName,
    ScaleName,
    known_names,
    one_of,
)
from ..errors import UsageError
from ..models.load import LoadedModel
from ..models.request import MODEL_NAMES, ModelOptions, ModelRequest
from ..profilers.backends import pick_accelerator, pick_enclave
from ..profilers.base import Conditions, Profile
from ..profilers.sgx_model import SgxModel
from ..profilers.target import TargetProfile
from .budgets import Budget
from .limits import Limits
from .urls import hold_shared

T = TypeVar("T")


class AttackOptions(ModelOptions, total=False):
    """What attacks on single cuts take as keyword arguments; None is the default."""

    data: str | Path | None
    max_cuts: int | None
    scale: ScaleName | None
    budget: BudgetName | Budget | None
    attackers: str | Sequence[str] | None
    resolution: int | None
    accelerator: AcceleratorName | None
    engine: EngineName | None


class FindOptions(AttackOptions, total=False):
    """What `find` takes as keyword arguments, flat; None is the default."""

    protocol: ProtocolName | None
    ssim: float | None
    cuts: str | Sequence[str] | None
    depth: int | None
    tune: int | None
    workers: int | None
    exhaustive: bool
    enclave: EnclaveName | None
    sgx_model: SgxModel | str | None
    threads: int | None
    batch: int | None
    repetitions: int | None
    profile: TargetProfile | str | Path | None
    storage: str | None
    artifacts: str | None
    feature_cache_gib: float | None
    worst_share: float | None
    worst_retrieval: float | None
    adversary_images: int | None
    command: str


@dataclass(frozen=True, kw_only=True)
class CutChoice:
    """Which cuts are looked at.

    Attributes:
        cuts: Kind of cuts or names, as in `LayerGraph.cuts`; None is the protocol's: ``clean``.
        max_cuts: Most cuts for ``clean`` and ``all``.
        depth: Module depth of ``stage``.
    """

    cuts: str | Sequence[str] | None = None
    max_cuts: int = 24
    depth: int | None = None

    def __post_init__(self) -> None:
        arguments.whole("max_cuts", self.max_cuts, 1)
        arguments.whole("depth", self.depth, 1)


@dataclass(frozen=True, kw_only=True)
class ImageChoice:
    """Which images are attacked.

    Attributes:
        data: Folder of images, ``ton-iot:FOLDER``, or None for generated ones.
        expected_data: Hash that the images must have; None takes any.
    """

    data: str | Path | None = None
    expected_data: str | None = None


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much attack is paid for.

    Attributes:
        budget: ``quick``, ``standard`` or ``full``; None is quick without a GPU, else standard.
        attackers: Names, or None for the budget's panel.
        resolution: Side in pixels at which images are rebuilt and scored; None: the budget's.
        tune: Settings tried for each attacker at the cut returned and at the one before; 0: none.
        workers: Attacks at a time in this process, or of a fleet, worker processes that are started
            here; 0 is none, where others are started elsewhere.
        exhaustive: Every attacker on every cut, for comparison with the search.
        attack: False attacks nothing: only what the storage has is evidence.
    """

    budget: BudgetName | Budget | None = None
    attackers: Sequence[str] | None = None
    resolution: int | None = None
    tune: int = 0
    workers: int = 1
    exhaustive: bool = False
    attack: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.budget, Budget):
            one_of("budget", self.budget, BudgetName)
        arguments.whole("tune", self.tune, 0)
        if self.workers:  # 0 is for a fleet, which the whole request says
            arguments.whole("workers", self.workers, 1, arguments.MOST_WORKERS)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How cuts are timed.

    Attributes:
        enclave, accelerator: Backends to profile on; ``auto`` takes the strongest there is. Attacks
            train where the tail is timed.
        engine: What runs the head: ``torch``, ``ort``, or ``auto``, the faster of both.
        sgx_model: Scale native enclave times (labelled modelled).
        threads, batch, repetitions: Equal on both sides.
    """

    enclave: EnclaveName = "auto"
    accelerator: AcceleratorName = "auto"
    engine: EngineName = "torch"
    sgx_model: SgxModel | None = None
    threads: int = 1
    batch: int = 1
    repetitions: int = 20

    def __post_init__(self) -> None:
        one_of("enclave", self.enclave, EnclaveName)
        one_of("accelerator", self.accelerator, AcceleratorName)
        one_of("engine", self.engine, EngineName)
        arguments.threads(self.threads)
        arguments.whole("batch", self.batch, 1)
        arguments.whole("repetitions", self.repetitions, 1)

    def conditions(self, seed: int) -> Conditions:
        """What a profile is measured under on this machine.

        Raises:
            BackendError: A backend that cannot be used here.
        """
        return Conditions(
            enclave=pick_enclave(self.enclave),
            accelerator=pick_accelerator(self.accelerator),
            threads=self.threads,
            batch=self.batch,
            repetitions=self.repetitions,
            seed=seed,
            engine=self.engine,
        )


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """What is asked beyond a mean score on our images.

    Attributes:
        worst_share: Largest share of all images, in (0, 1], whose own score may reach the
            threshold, by its exact upper bound; None allows any.
        worst_retrieval: The same of images whose true photo is picked out among the test photos.
        adversary_images: How many images the adversary has to learn from; None is ten times the
            run's.
    """

    worst_share: float | None = None
    worst_retrieval: float | None = None
    adversary_images: int | None = None

    def __post_init__(self) -> None:
        arguments.whole("adversary_images", self.adversary_images, 1)
        self.limits()

    def limits(self, copies: bool = True) -> Limits:
        """What is allowed of single images."""
        return Limits(
            worst_share=self.worst_share, worst_retrieval=self.worst_retrieval, copies=copies
        )


@dataclass(frozen=True, kw_only=True)
class FindRequest:
    """A whole run of `find`, as it is asked for.

    Attributes:
        model: Which model, or a loaded one.
        protocol: ``strict``, or ``paper``: the published way, which fixes `ssim`, `scale`, the
            attackers and the kind of cuts (see `protocols`).
        ssim: Threshold in (0, 1]: scores at or above it leak; None is 0.2.
        scale: ``corrected`` (above the floor, what None means) or ``raw`` SSIM.
        which_cuts, images, effort, timing, adversary: Each with a record of its own.
        storage: None for a journal in the cache folder, a ``.journal`` file or a database URL.
        fleet: Attacks are jobs in the storage, which worker processes take, on any machines.
        artifacts: Where a fleet keeps pictures: a folder or ``s3://BUCKET``; None is the cache.
        feature_cache_gib: Disk for feature maps, GiB.
        seed: For everything random.
        first: A cut and an attacker to begin with; a leak proven there ends the search.
        times: Latencies of these very cuts, known already; None profiles them.
        profile: Where all times come from, a file of `partopt profile`; `timing` then says only
            where attacks train. None takes times here.
        command: The command line, for the result.
    """

    model: ModelRequest | LoadedModel
    protocol: ProtocolName = "strict"
    ssim: float | None = None
    scale: ScaleName | None = None
    which_cuts: CutChoice = field(default_factory=CutChoice)
    images: ImageChoice = field(default_factory=ImageChoice)
    effort: Effort = field(default_factory=Effort)
    timing: Timing = field(default_factory=Timing)
    adversary: Adversary = field(default_factory=Adversary)
    storage: str | None = None
    fleet: bool = False
    artifacts: str | None = None
    feature_cache_gib: float = 8.0
    seed: int = 0
    first: tuple[str, str] | None = None
    times: Profile | None = None
    profile: TargetProfile | None = None
    command: str = ""

    def __post_init__(self) -> None:
        one_of("protocol", self.protocol, ProtocolName)
        one_of("scale", self.scale, ScaleName)
        if self.ssim is not None and not 0 < self.ssim <= 1:
            raise UsageError(f"`ssim` got {self.ssim}; use a threshold above 0 and at most 1")
        self._hold_fleet()
        arguments.seed(self.seed)
        arguments.above_zero("feature_cache", self.feature_cache_gib, "an amount of GiB")

    def _hold_fleet(self) -> None:
        workers = self.effort.workers
        if not self.fleet:
            if workers < 1:
                raise UsageError(
                    f"`workers` got {workers}; use 1 to {arguments.MOST_WORKERS}, or give the "
                    "--storage that workers on other machines share"
                )
            if self.artifacts is not None:
                raise UsageError(
                    f"`artifacts` got {self.artifacts!r}, which is for workers; give --workers and "
                    "--storage too"
                )
        elif self.storage is None:
            raise UsageError("`storage` is needed beside a fleet: the one that its workers share")
        else:
            hold_shared(self.storage)

    @classmethod
    def of(
        cls,
        model: str | LoadedModel,
        options: Mapping[str, Any],
        whose: str = "find",
        known: type[ModelOptions] = FindOptions,
    ) -> FindRequest:
        """From the keyword arguments of the function `whose`, which takes those of `known`.

        Raises:
            UsageError: A name that there is none of, a value outside its range, or what chooses a
                model beside a loaded one.
        """
        given = known_names(whose, options, known.__annotations__)
        given["attackers"] = arguments.names("attackers", given.get("attackers") or None)
        if isinstance(given.get("sgx_model"), str):
            given["sgx_model"] = SgxModel.parse(given["sgx_model"])
        if given.get("profile") is not None:
            given["profile"] = opened(given["profile"], given)
        needless = sorted(n for n in given if n in MODEL_NAMES - {"seed"})
        if isinstance(model, LoadedModel) and needless:
            raise UsageError(
                f"`{needless[0]}` is given beside a loaded model, which has its own; give it to "
                "load_model"
            )
        own = {f.name for f in fields(cls)}
        return cls(
            model=(
                model
                if isinstance(model, LoadedModel)
                else ModelRequest(spec=model, **{n: given[n] for n in MODEL_NAMES & given.keys()})
            ),
            which_cuts=_filled(CutChoice, given),
            images=_filled(ImageChoice, given),
            effort=_filled(Effort, given),
            timing=_filled(Timing, given),
            adversary=_filled(Adversary, given),
            fleet={"workers", "storage"} <= given.keys(),
            **{n: v for n, v in given.items() if n in own},
        )


def opened(profile: TargetProfile | str | Path, given: Mapping[str, Any]) -> TargetProfile:
    """The profile, read if need be; options beside it must not say another thing than it does.

    Args:
        profile: A profile or its file.
        given: Arguments by name, those that were given.

    Raises:
        ConfigError: The file cannot be used.
        UsageError: An option that differs, or an SGX model for times of SGX.
    """
    found = profile if isinstance(profile, TargetProfile) else TargetProfile.read(profile)
    how = found.conditions
    for name in ("enclave", "engine", "threads", "batch", "repetitions"):
        said, has = given.get(name), getattr(how, name)
        if said not in (None, "auto", has):
            raise UsageError(
                f"`{name}` got {said!r}, but {found.name} holds times under {has!r}; leave it out, "
                "or make the profile so"
            )
    if given.get("sgx_model") is not None and how.enclave == "gramine-sgx":
        raise UsageError(
            f"`sgx-model` got a model, but the enclave times of {found.name} were measured inside "
            "SGX; leave it out"
        )
    return found


def _filled(record: type[T], given: Mapping[str, Any]) -> T:
    """The record with those of its fields that are given."""
    names = {f.name for f in fields(record)}  # type: ignore[arg-type]
    return record(**{n: v for n, v in given.items() if n in names})
