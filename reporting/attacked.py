"""The panel on one cut, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..studies.single import CutAttack


def as_dict(found: CutAttack) -> dict[str, Any]:
    """Everything measured, as plain values, without the pictures."""
    results = [
        {
            "attacker": r.attacker,
            "settings": r.settings,
            "score": None if r.score is None else asdict(r.score),
            "ms_ssim": r.ms_ssim,
            "psnr": r.psnr,
            "lpips": r.lpips,
            "image_steps": r.image_steps,
            "seconds": round(r.seconds, 2),
            "note": r.note,
        }
        for r in found.results
    ]
    strongest = found.strongest
    return {
        "model": found.model,
        "weights": found.weights,
        "cut": found.cut,
        "data": found.data,
        "resolution": found.resolution,
        "images": found.images,
        "floor": found.floor,
        "strongest": strongest.attacker if strongest else None,
        "results": results,
        "warnings": found.warnings,
    }


def table(found: CutAttack) -> RenderableType:
    """A line an attacker, the strongest in bold."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("attacker")
    for name in ("SSIM", "score", "95 %", "MS-SSIM", "PSNR dB", "LPIPS", "image-steps", "s"):
        shown.add_column(name, justify="right")
    shown.add_column("note")
    strongest = found.strongest
    for r in found.results:
        s = r.score
        shown.add_row(
            r.attacker,
            f"{s.raw:.3f}" if s else "failed",
            f"{s.value:.3f}" if s else "-",
            f"{s.low:.2f}-{s.high:.2f}" if s else "-",
            _number(r.ms_ssim, 3),
            _number(r.psnr, 1),
            _number(r.lpips, 3),
            str(r.image_steps),
            f"{r.seconds:.0f}",
            r.note,
            style="bold" if strongest is not None and r.attacker == strongest.attacker else "",
        )
    lines = [
        f"\n{found.model} cut after {found.cut}, weights {found.weights}; data: {found.data}; "
        f"{found.images['test']} unseen images at {found.resolution}x{found.resolution}; floor "
        f"{found.floor:.3f}",
        *(f"! {w}" for w in found.warnings),
    ]
    return Group(shown, Text("\n".join(lines)))


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
