"""Answers of a running split, and measurements of it, as tables and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..enclave_runner.attestation import LABELS
from ..enclave_runner.bench import STAGES, Measured
from ..errors import PartoptError
from ..printable import encodable

_BASELINES = {
    "whole in enclave": "whole model in the enclave (forward pass alone)",
    "whole outside": "whole model outside (forward pass alone)",
    "published": "the published way: a fresh head process a request, hand-off by file",
}


def as_dict(
    backend: str, rows: list[dict[str, Any]], failed: Sequence[tuple[Path, PartoptError]] = ()
) -> dict[str, Any]:
    """Answers as plain values, and which images got none; times in milliseconds."""
    return {
        "backend": backend,
        "protection": LABELS.get(backend, "unknown"),
        "answers": [
            {
                "input": encodable(row["input"]),
                "classes": [{"label": n, "probability": p} for n, p in row["classes"]],
                "times_ms": {k: v * 1e3 for k, v in row["answer"].times.items()},
                "client_ms": row["answer"].seconds * 1e3,
            }
            for row in rows
        ],
        "failed": [
            {
                "input": encodable(str(path)),
                "code": getattr(error, "code", "unreadable"),
                "error": encodable(str(error)),
            }
            for path, error in failed
        ],
    }


def table(backend: str, rows: list[dict[str, Any]]) -> RenderableType:
    """A table an image."""
    parts: list[RenderableType] = []
    for row in rows:
        shown = Table(box=None, pad_edge=False, header_style="bold")
        shown.add_column(row["input"])
        shown.add_column("probability", justify="right")
        for name, chance in row["classes"]:
            shown.add_row(name, f"{chance:.1%}")
        times = row["answer"].times
        stages = ", ".join(f"{s} {times[s] * 1e3:.2f}" for s in STAGES if s in times)
        parts += [shown, Text(f"ms: {stages}; {row['answer'].seconds * 1e3:.2f} in all\n", "dim")]
    return Group(*parts)


def bench_table(found: Measured) -> RenderableType:
    """Stages, other ways, throughput and the prediction."""
    stages = Table(box=None, pad_edge=False, header_style="bold")
    stages.add_column("stage, ms")
    for name in ("p50", "p95", "p99"):
        stages.add_column(name, justify="right")
    names = {
        "split": "head + hand-off + tail",
        "inside": "in the head worker",
        "client": "end to end",
    }
    for stage, values in found.stages.items():
        row = [f"{values[p]:.2f}" for p in ("p50", "p95", "p99")]
        stages.add_row(names.get(stage, stage), *row, style="bold" if stage in names else "")
    end = found.stages["client"]["p50"]
    lines = [
        f"\n{found.requests} requests, head in {found.backend} ({found.label}), tail on "
        f"{found.device}, hand-off by {found.transport}, {found.threads} thread(s); both workers "
        f"were there after {found.start_s:.1f} s",
        f"overhead: {found.overhead_ms:.2f} ms end to end beyond preprocessing, head and tail",
    ]
    for name, ms in found.baselines.items():
        lines.append(f"{_BASELINES[name]}: {ms:.2f} ms, {ms / end:.2f}x of end to end")
    p = found.pipelined
    lines.append(
        f"pipelined: {p['requests_per_s']:.1f} requests/s, {p['share_of_bound']:.0%} of what the "
        f"slowest stage allows ({p['bound_per_s']:.1f}/s)"
    )
    if found.predicted_ms is not None and found.predicted_error is not None:
        lines.append(
            f"head + hand-off + tail predicted in this run: {found.predicted_ms:.2f} ms "
            f"({found.predicted_error:+.1%})"
        )
    if found.found_ms is not None and found.found_error is not None:
        lines.append(f"predicted by find: {found.found_ms:.2f} ms ({found.found_error:+.1%})")
    lines += [f"! {note}" for note in found.notes]
    return Group(stages, Text("\n".join(lines)))
