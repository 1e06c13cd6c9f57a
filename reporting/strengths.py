"""Attack strength as a table, a chart and JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..errors import UsageError
from ..studies.strength import Strength
from .charts import INK, RED, SERIES, legend_of, new_figure, to_png, to_svg


def as_dict(found: Strength) -> dict[str, Any]:
    """Everything measured, as plain values."""
    return {**asdict(found), "rising": found.rising}


def table(found: Strength) -> RenderableType:
    """Score by images (down) for each attacker and number of epochs (across)."""
    lines = list(dict.fromkeys((c.attacker, c.epochs) for c in found.cells))
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("images", justify="right")
    for attacker, epochs in lines:
        shown.add_column(_name(attacker, epochs), justify="right")
    by_place = {(c.images, c.attacker, c.epochs): c for c in found.cells}
    for size in sorted({c.images for c in found.cells}):
        row = [str(size)]
        for attacker, epochs in lines:
            cell = by_place.get((size, attacker, epochs))
            s = cell.score if cell else None
            row.append(f"{s.value:.3f} ({s.low:.2f}-{s.high:.2f})" if s else "-")
        shown.add_row(*row)
    text = [
        f"\n{found.model} cut after {found.cut}, weights {found.weights}; data: {found.data}; "
        f"score above the floor ({found.floor:.3f}) at {found.resolution}x{found.resolution}",
        *(f"! {w}" for w in [*found.rising, *found.warnings]),
    ]
    return Group(shown, Text("\n".join(text)))


def drawable(path: Path) -> None:
    """Raise unless `path` names a kind of file that `chart` can write.

    Raises:
        UsageError: It does not.
    """
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"`chart` got {str(path)!r}; use a name that ends in .svg or .png")


def chart(found: Strength, path: Path) -> None:
    """Score by number of training images, one line an attacker and number of epochs."""
    drawable(path)
    figure, axes = new_figure(6.4, 3.6)
    lines = list(dict.fromkeys((c.attacker, c.epochs) for c in found.cells))
    for i, (attacker, epochs) in enumerate(lines):
        mine = [c for c in found.cells if (c.attacker, c.epochs) == (attacker, epochs)]
        axes.errorbar(
            [c.images for c in mine],
            [c.score.value for c in mine],
            yerr=[
                [max(0.0, c.score.value - c.score.low) for c in mine],
                [max(0.0, c.score.high - c.score.value) for c in mine],
            ],
            marker="o",
            ms=4,
            capsize=2,
            color=SERIES[i % len(SERIES)],
            label=_name(attacker, epochs),
        )
    axes.axhline(found.threshold, color=RED, ls="--", label=f"threshold {found.threshold:g}")
    axes.set_xscale("log", base=2)
    sizes = sorted({c.images for c in found.cells})
    axes.set_xticks(sizes, [str(s) for s in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("training images of the attacker")
    axes.set_ylabel("SSIM above the floor")
    axes.set_title(f"{found.model} cut after {found.cut}", color=INK, fontsize=10)
    legend_of(axes, loc="best")
    label = f"Attack strength at {found.cut}"
    if path.suffix == ".svg":
        path.write_text(to_svg(figure, label))
    else:
        path.write_bytes(to_png(figure))


def _name(attacker: str, epochs: int | None) -> str:
    return attacker if epochs is None else f"{attacker}, {epochs} epoch{'s' * (epochs != 1)}"
