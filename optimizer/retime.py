"""A stored result with the times of a profile in place of its own; nothing else of it changes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .. import config as c
from ..errors import ConfigError
from ..graph.build import Cut
from ..profilers.base import Profile
from ..profilers.target import TargetProfile
from .choose import Candidates, fastest
from .result import latency_of, time_of
from .rule import PASSED


@dataclass(frozen=True)
class Retimed:
    """A result by other times.

    Attributes:
        config: With the profile's times, and what they recommend of the stored cut.
        fastest: Name of the cut to use by these times, among those that passed; None where no cut
            did, or where the result holds none.
    """

    config: c.SplitConfig
    fastest: str | None


def retimed(config: c.SplitConfig, target: TargetProfile) -> Retimed:
    """Give `config` the times of `target`, which is of the same layer graph.

    Raises:
        ConfigError: It is of another one.
    """
    target.hold_hash(config.model.graph_hash, f"the result of {config.model.spec}")
    at = {cut.name: i for i, cut in enumerate(target.cuts)}
    names = [row.name for row in config.cuts]
    deployed = [] if config.cut is None else [config.cut.name]
    lacking = next((name for name in [*names, *deployed] if name not in at), None)
    if lacking is not None:
        raise ConfigError(f"{target.name} has no times of the cut {lacking!r}; make it again")
    now = target.profile([at[name] for name in names])
    rows = [
        row.model_copy(update={"latency_ms": c.Latency(**latency_of(latency))})
        for row, latency in zip(config.cuts, now.cuts, strict=True)
    ]
    update = {"cuts": rows, "full_enclave_ms": time_of(now.full_enclave), "taken": now.taken}
    if config.cut is None:
        return Retimed(config.model_copy(update=update), None)
    if config.cut.name not in names:
        raise ConfigError(f"the result of {config.model.spec} lists its own cut in no row")
    chosen = names.index(config.cut.name)
    found = Candidates.of(_cuts(config), now.cuts, now.full_enclave, now.full_accelerator)
    advice = found.advise(chosen)
    assert advice is not None
    update |= {
        "latency_ms": _chosen(now, chosen),
        "recommendation": advice.what,
        "recommended_because": advice.reason,
    }
    return Retimed(config.model_copy(update=update), _fastest(config, found))


def _fastest(config: c.SplitConfig, found: Candidates) -> str | None:
    leaks = {
        i: math.inf if row.suffix_high is None else row.suffix_high
        for i, row in enumerate(config.cuts)
        if row.status in PASSED and row.may_be_answer
    }
    best = fastest(found, list(leaks), leaks)
    return None if best is None else config.cuts[best].name


def _cuts(config: c.SplitConfig) -> list[Cut]:
    """The rows as cuts, with what a choice among them looks at."""
    assert config.cut is not None
    flops = config.cut.head_flops + config.cut.tail_flops
    return [
        Cut(
            name=row.name,
            node=i,
            index=i,
            boundary=(),
            head_param_bytes=row.head_param_bytes,
            head_peak_activation_bytes=row.head_peak_activation_bytes,
            payload_bytes=row.payload_bytes,
            head_flops=row.head_flops,
            tail_flops=flops - row.head_flops,
            head_layers=row.head_layers,
            tail_layers=0,
        )
        for i, row in enumerate(config.cuts)
    ]


def _chosen(now: Profile, chosen: int) -> c.ChosenLatency:
    parts: dict[str, Any] = latency_of(now.cuts[chosen])
    return c.ChosenLatency(
        **parts,
        full_enclave=time_of(now.full_enclave),
        full_accelerator=time_of(now.full_accelerator),
        threads=now.threads,
        batch=now.batch,
        repetitions=now.repetitions,
        engine="ort" if now.engine == "ort" else "torch",
    )
