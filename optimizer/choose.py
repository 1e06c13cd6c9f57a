"""Which safe cut: the fastest, ties to the least work in the enclave, then to the fewest bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..graph import Cut
from ..profilers.base import CutLatency

TIE = 0.05  # differences below this share of the fastest total are ties whatever the noise


def choose(
    cuts: Sequence[Cut], latencies: Sequence[CutLatency], allowed: Sequence[int]
) -> int | None:
    """Index of the cut to use among those `allowed`, or None where there is none.

    Two totals tie where they differ by less than twice their joint standard error, or by less than
    `TIE` of the fastest: an answer that hangs on less would change from run to run.
    """
    if not allowed:
        return None
    fastest = min(allowed, key=lambda i: latencies[i].total.ms)
    best = latencies[fastest].total

    def ties(i: int) -> bool:
        total = latencies[i].total
        noise = 2 * math.hypot(total.noise_ms, best.noise_ms)
        return total.ms - best.ms <= max(noise, TIE * best.ms)

    return min(
        (i for i in allowed if ties(i)),
        key=lambda i: (cuts[i].head_flops, cuts[i].payload_bytes, cuts[i].node),
    )
