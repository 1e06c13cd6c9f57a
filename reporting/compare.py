"""Two results side by side."""

from __future__ import annotations

from rich.table import Table

from ..config import SplitConfig
from .table import advised, uncertified


def compare(a: SplitConfig, b: SplitConfig) -> Table:
    """A table of what the two results have in common and where they differ."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for name in ("", "A", "B"):
        table.add_column(name, overflow="fold")
    for label, one, two in rows(a, b):
        table.add_row(label, one, two, style="" if one == two else "bold")
    return table


def rows(a: SplitConfig, b: SplitConfig) -> list[tuple[str, str, str]]:
    """Label and both values, in the order of the table; cuts of either are listed in order."""
    left, right = _facts(a.shown()), _facts(b.shown())
    labels = list(dict.fromkeys([*left, *right]))
    return [(label, left.get(label, "-"), right.get(label, "-")) for label in labels]


def _facts(c: SplitConfig) -> dict[str, str]:
    p, lat = c.privacy, c.latency_ms
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
        "ratio": "-" if lat is None else f"{lat.full_enclave.ms / lat.total.ms:.2f}x",
    }
    for row in c.cuts:
        score = "-" if row.score is None else f"{row.score:.2f}"
        facts[f"  {row.name}"] = f"{score} {row.status}, {row.latency_ms.total.ms:.2f} ms"
    return facts
