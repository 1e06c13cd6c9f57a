"""Whether a deployed cut is still as fast as it was, and still the one to use."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from ..config import CutRow, label
from ..errors import BackendError
from ..graph.build import Cut
from ..profilers.backends import pick_accelerator, pick_enclave
from ..profilers.base import Conditions, CutLatency, Duration, Profile
from ..profilers.profile import profile
from ..profilers.target import TargetProfile
from .checked import Checked, CheckResult, What
from .choose import TIE, Candidates, fastest
from .rule import PASSED

_BY = {"ort": " by ONNX Runtime"}


def stored_times(checked: Checked) -> Profile | None:
    """The stored latencies of the cuts that are judged; None where one of them has none."""
    rows = {row.name: row for row in checked.config.cuts}
    latency = checked.latency
    if any(cut.name not in rows for cut in checked.cuts):
        return None
    return Profile(
        cuts=[_from_row(rows[cut.name]) for cut in checked.cuts],
        full_enclave=_duration(latency, "full_enclave"),
        full_accelerator=_duration(latency, "full_accelerator"),
        threads=latency.threads,
        batch=latency.batch,
        repetitions=latency.repetitions,
        engine=latency.engine,
        taken=checked.config.taken,
    )


def profiled(
    result: CheckResult, checked: Checked, target: TargetProfile, tolerance: float | None
) -> Profile:
    """The times of a profile, whose ratio is compared as a measured one is.

    Args:
        result: Is told the outcome.
        checked: Holds the ratio to compare with, and the cuts.
        target: Of the graph that is checked.
        tolerance: How much the ratio may grow, as a share; None compares nothing.
    """
    now = target.times(checked.graph, checked.cuts)
    stored, how = checked.latency, target.conditions
    inside, outside = stored.full_enclave.backend, stored.full_accelerator.backend
    before = (inside, stored.engine, outside, stored.threads, stored.batch)
    after = (how.enclave, how.engine, how.accelerator, how.threads, how.batch)
    if tolerance is None:
        result.add("latency", "skipped", "switched off")
    elif stored.enclave.basis == "modelled":
        result.add("latency", "skipped", "stored times are modelled, the profile's measured")
    elif before != after:
        one, two = (
            f"{head}{_BY.get(engine, '')} and {tail}, {threads} thread(s), batch {batch}"
            for head, engine, tail, threads, batch in (before, after)
        )
        result.add("latency", "skipped", f"stored times are of {one}, the profile's of {two}")
    else:
        _compare(result, checked, now, tolerance, f"by the profile of {label(now.taken)}")
    return now


def latency_holds(result: CheckResult, checked: Checked, tolerance: float) -> Profile | None:
    """Measure anew and compare ratios to the full-enclave time; None where that cannot be done.

    Args:
        result: Is told the outcome.
        checked: Holds the ratio to compare with, and the cuts to time.
        tolerance: How much the ratio may grow, as a share.
    """
    stored, taken = checked.latency, checked.config.taken
    if stored.enclave.basis == "modelled":
        result.add("latency", "skipped", "stored times are modelled")
        return None
    if taken is not None and taken.profile is not None:
        said = f"stored times are of a profile of {label(taken)}; give one of it with --profile"
        result.add("latency", "skipped", said)
        return None
    try:
        enclave = pick_enclave(stored.full_enclave.backend)
        accelerator = pick_accelerator(stored.full_accelerator.backend)
    except BackendError as error:
        result.add("latency", "skipped", str(error))
        return None
    conditions = Conditions(
        enclave=enclave,
        accelerator=accelerator,
        threads=stored.threads,
        batch=stored.batch,
        engine=stored.engine,
    )
    now = profile(checked.graph, checked.cuts, conditions)
    _compare(result, checked, now, tolerance, f"of the same run, on {label(now.taken)}")
    return now


def _compare(
    result: CheckResult, checked: Checked, now: Profile, tolerance: float, whence: str
) -> None:
    """Hold the ratio to the full-enclave time against the stored one."""
    stored = checked.latency
    before = stored.total.ms / stored.full_enclave.ms
    after = now.cuts[checked.position(checked.cuts)].total.ms / now.full_enclave.ms
    text = (
        f"{after:.2f} of the full-enclave time {whence}; stored {before:.2f}, on "
        f"{label(checked.config.taken)}"
    )
    what: What = "slower" if after > before * (1 + tolerance) else "holds"
    result.add("latency", what, text)


def candidates(
    checked: Checked, cuts: Sequence[Cut], rows: Sequence[CutRow], now: Profile | None
) -> Candidates:
    """The cuts with their times: those of `now`, which measured them, or those in `rows`."""
    if now is not None:
        return Candidates.of(cuts, now.cuts, now.full_enclave, now.full_accelerator)
    inside, outside = (
        _duration(checked.latency, part) for part in ("full_enclave", "full_accelerator")
    )
    return Candidates.of(cuts, row_times(rows, cuts), inside, outside)


def leaks(rows: Sequence[CutRow], safe: Collection[str]) -> dict[str, float]:
    """Upper end of the score, here and later, of the safe cuts that were attacked in full."""
    return {
        row.name: math.inf if row.suffix_high is None else row.suffix_high
        for row in rows
        if row.name in safe and row.may_be_answer
    }


def still_pays(result: CheckResult, checked: Checked, found: Candidates) -> None:
    """Whether the split is still faster than the whole model inside, where times can say."""
    advice = found.advise(checked.position(found.cuts))
    before = checked.config.recommendation
    if advice is None or advice.what == "not compared" or before is None:
        return
    if before == "do not split":
        result.add("split or not", "skipped", "the config itself recommends not to split")
    elif advice.what == "split":
        result.add("split or not", "holds", advice.reason)
    else:
        result.add("split or not", "moved", f"to the whole model in the enclave: {advice.reason}")


def still_best(
    result: CheckResult,
    checked: Checked,
    found: Candidates,
    leaking: Mapping[str, float],
) -> None:
    """Choose among the safe cuts, those in `leaking`, and compare with the one deployed."""
    cuts, times = found.cuts, found.latencies
    allowed = [i for i, cut in enumerate(cuts) if cut.name in leaking]
    best = fastest(found, allowed, {i: leaking[cuts[i].name] for i in allowed})
    if best is None:
        result.add("best cut", "skipped", "no cut is safe")
        return
    mine = checked.position(cuts)
    stored_safe = {row.name for row in checked.config.cuts if row.status in PASSED}
    gain = times[mine].total.ms - times[best].total.ms
    noise = 2 * (times[mine].total.noise_ms ** 2 + times[best].total.noise_ms ** 2) ** 0.5
    pays = gain > max(noise, TIE * times[best].total.ms)
    # Where the same cuts are safe as before, a tie that falls another way is no move.
    if best == mine or (not pays and {cuts[i].name for i in allowed} <= stored_safe):
        result.add("best cut", "holds", f"{cuts[mine].name} is still the one to use")
        return
    work = cuts[mine].head_flops - cuts[best].head_flops
    result.add(
        "best cut",
        "moved",
        f"from {cuts[mine].name} to {cuts[best].name}: {gain:+.2f} ms gained, "
        f"{work / 1e6:.0f} MFLOP less in the enclave",
    )


def row_times(rows: Sequence[CutRow], cuts: Sequence[Cut]) -> list[CutLatency]:
    """The latencies in `rows` of `cuts`, by name."""
    by_name = {row.name: row for row in rows}
    return [_from_row(by_name[cut.name]) for cut in cuts]


def _from_row(row: CutRow) -> CutLatency:
    parts = ("enclave", "handoff", "accelerator", "total")
    return CutLatency(**{part: _duration(row.latency_ms, part) for part in parts})


def _duration(latency: object, part: str) -> Duration:
    time = getattr(latency, part)
    return Duration(time.ms, time.noise_ms, time.basis, time.backend)
