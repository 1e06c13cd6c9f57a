"""Which safe cut: the fastest; within measured noise the one that leaks least; or no cut at all.

The whole model inside the enclave is a candidate like any other. It leaks nothing, so it is the
answer wherever no safe cut is faster beyond noise: `Candidates.advise`. Where both sides were timed
on one and the same kind of device, without an enclave, a cut's time is that of the whole model
plus the hand-off, and comparing it with the whole model's says nothing of a deployment. Nothing is
concluded from it there, and cuts that tie are told apart by the work they leave outside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..config import Recommendation
from ..graph.build import Cut
from ..profilers.base import CutLatency, Duration

TIE = 0.05  # differences below this share of the faster total are ties whatever the noise


class Origin(Protocol):
    """A time's origin, as profiles and split configs hold it."""

    @property
    def basis(self) -> str:
        """``measured`` or ``modelled``."""

    @property
    def backend(self) -> str:
        """Where it was measured."""


def compares(inside: Origin, outside: Origin) -> bool:
    """Whether times of the two sides can say if splitting pays.

    Args:
        inside: Time of the whole model in the enclave.
        outside: Time of the whole model on the accelerator.

    Returns:
        False where both are native times of the host: neither enclave nor accelerator was there.
    """
    return inside.basis == "modelled" or inside.backend != "native" or outside.backend != "cpu"


def clearly_faster(a: Duration, b: Duration) -> bool:
    """Whether `a` is faster than `b` by more than twice their joint standard error and `TIE`."""
    return b.ms - a.ms > max(2 * math.hypot(a.noise_ms, b.noise_ms), TIE * a.ms)


@dataclass(frozen=True)
class Advice:
    """What is recommended, and why in one sentence."""

    what: Recommendation
    reason: str


@dataclass(frozen=True)
class Candidates:
    """The cuts with their times, and the whole model in the enclave beside them.

    Attributes:
        cuts: In execution order.
        latencies: Of the same cuts.
        whole: Time of the whole model in the enclave; None where a comparison with it is void.
    """

    cuts: Sequence[Cut]
    latencies: Sequence[CutLatency]
    whole: Duration | None = None

    @classmethod
    def of(
        cls,
        cuts: Sequence[Cut],
        latencies: Sequence[CutLatency],
        inside: Duration,
        outside: Duration,
    ) -> Candidates:
        """With the whole model's times `inside` the enclave and `outside`, if those compare."""
        return cls(cuts, latencies, inside if compares(inside, outside) else None)

    def total(self, i: int) -> Duration:
        """Latency of a cut."""
        return self.latencies[i].total

    def pays(self, i: int) -> bool:
        """Whether a cut is faster than the whole model in the enclave, beyond noise."""
        return self.whole is not None and clearly_faster(self.total(i), self.whole)

    def contenders(self, allowed: Sequence[int], leaks: Mapping[int, float]) -> list[int]:
        """Those of `allowed` that no other one of them rules out.

        One that is clearly faster rules a cut out, and so does one that is as fast and leaks less.
        Where some are faster than the whole model, beyond noise, only those are looked at. More
        candidates only ever rule out more.
        """
        paying = [i for i in allowed if self.pays(i)] or list(allowed)

        # Times that say nothing of a deployment differ by chance: only by more do they count.
        slack = 1.0 if self.whole is not None else 1 + TIE

        def ruled_out(i: int) -> bool:
            mine = self.total(i)
            return any(
                clearly_faster(self.total(j), mine)
                or (self.total(j).ms * slack <= mine.ms and leaks[j] < leaks[i])
                for j in paying
                if j != i
            )

        return [i for i in paying if not ruled_out(i)]

    def could_win(self, safe: Sequence[int], candidate: int, leaks: Mapping[int, float]) -> bool:
        """Whether `candidate`, were it safe too, could be the one that `choose` takes in the end.

        Args:
            safe: Safe cuts so far.
            candidate: An earlier cut.
            leaks: Upper end of the score, here and later, of each safe cut.
        """
        # Here and later counts, so that an earlier cut leaks at least what the later ones do.
        least = max((leaks[i] for i in safe), default=0.0)
        everyone = [*(i for i in safe if i != candidate), candidate]
        return candidate in self.contenders(everyone, {**leaks, candidate: least})

    def advise(self, chosen: int | None) -> Advice | None:
        """Whether to split at the chosen cut; None where there is none."""
        if chosen is None:
            return None
        name, total = self.cuts[chosen].name, self.total(chosen)
        if self.whole is None:
            return Advice(
                "not compared",
                "enclave and accelerator were both timed on one CPU, without an enclave: these "
                "times say nothing of a deployment, and whether a split pays is open; partopt "
                "profile, on the machine of deployment, takes times that do",
            )
        if self.pays(chosen):
            return Advice(
                "split",
                f"{name} takes {total.ms:.2f} ms, all in the enclave {self.whole.ms:.2f} ms",
            )
        return Advice(
            "do not split",
            "no cut that passes is faster, beyond noise, than the whole model in the enclave "
            f"({self.whole.ms:.2f} ms; the fastest one, {name}, {total.ms:.2f} ms), and that "
            "leaks nothing",
        )


def fastest(
    candidates: Candidates, allowed: Sequence[int], leaks: Mapping[int, float]
) -> int | None:
    """Index of the cut to use among those `allowed`, or None where there is none.

    Of cuts that tie (see `Candidates.contenders`) the one that leaks least is taken, then the one
    with the least work in the enclave, then the one with the fewest bytes. Where times say nothing
    of a deployment, the least work in the enclave comes first, and leakage decides among cuts whose
    work is the same within `TIE` of the model's.

    Args:
        candidates: Cuts and times.
        allowed: Indices of the cuts that may be used.
        leaks: For each of them the upper end of its score, here and later.
    """
    left = candidates.contenders(allowed, leaks)
    if not left:
        return None
    cuts = candidates.cuts
    if candidates.whole is None:
        least = min(cuts[i].head_flops for i in left)
        room = TIE * max(cuts[i].head_flops + cuts[i].tail_flops for i in left)
        left = [i for i in left if cuts[i].head_flops - least <= room]
    return min(
        left, key=lambda i: (leaks[i], cuts[i].head_flops, cuts[i].payload_bytes, cuts[i].node)
    )
