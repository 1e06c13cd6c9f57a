"""Two results side by side."""

from __future__ import annotations

from rich.table import Table

from ..config import SplitConfig
from ..optimizer.retime import retimed
from ..printable import printable
from ..profilers.target import TargetProfile
from .table import advised, left_outside, uncertified
from .taken import taken


def compare(a: SplitConfig, b: SplitConfig, target: TargetProfile | None = None) -> Table:
    """A table of what the two results have in common and where they differ.

    Args:
        a, b: The results.
        target: Whose times stand in place of both results' own; None leaves them.

    Raises:
        ConfigError: `target` is of another layer graph than one of them.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for name in ("", "A", "B"):
        table.add_column(name, overflow="fold")
    for label, one, two in rows(a, b, target):
        table.add_row(label, one, two, style="" if one == two else "bold")
    return table


def rows(
    a: SplitConfig, b: SplitConfig, target: TargetProfile | None = None
) -> list[tuple[str, str, str]]:
    """Label and both values, in the order of the table; cuts of either are listed in order."""
    left, right = (_side(config, target) for config in (a, b))
    labels = list(dict.fromkeys([*left, *right]))
    return [(label, left.get(label, "-"), right.get(label, "-")) for label in labels]


def _side(config: SplitConfig, target: TargetProfile | None) -> dict[str, str]:
    if target is None:
        return _facts(config.shown())
    found = retimed(config, target)
    facts = _facts(found.config.shown())
    if found.fastest is not None:
        facts["fastest by these times"] = printable(found.fastest)
    return facts


def _facts(c: SplitConfig) -> dict[str, str]:
    p, lat = c.privacy, c.latency_ms
    void = c.cut is not None and advised(c) == "not compared"
    facts = {
        "model": c.model.spec,
        "weights": f"{c.model.weights} ({c.model.weights_hash[:12]})",
        "data": p.data,
        "evidence": p.evidence,
        "threshold": f"{p.threshold:g} ({p.scale})",
        "resolution": str(p.resolution),
        "attackers": ", ".join(a.name for a in p.attackers),
        "floor": f"{p.floor:.3f}",
        "cut": f"{c.cut.name}{uncertified(c)}" if c.cut else "none is safe",
        "score at the cut": "-" if p.score is None else f"{p.score:.3f} (at most {p.high:.3f})",
        "split or not": advised(c) if c.cut else "-",
        "total ms": "-" if lat is None else f"{lat.total.ms:.2f} ({lat.total.basis})",
        "full enclave ms": f"{c.full_enclave_ms.ms:.2f} ({c.full_enclave_ms.basis})",
        "ratio": "-"
        if lat is None
        else "says nothing of a deployment"
        if void
        else f"{lat.full_enclave.ms / lat.total.ms:.2f}x",
        "work left outside": "-" if c.cut is None else left_outside(c.cut),
        "times": taken(c.taken),
    }
    for row in c.cuts:
        score = "-" if row.score is None else f"{row.score:.2f}"
        facts[f"  {row.name}"] = f"{score} {row.status}, {row.latency_ms.total.ms:.2f} ms"
    return facts
