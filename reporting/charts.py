"""The report's charts, drawn by matplotlib as SVG that follows the page's colours.

Text and axes are drawn in a marker colour that becomes ``currentColor``, so that one chart serves a
light page, a dark one and print.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from ..config import SplitConfig
from ..errors import BackendError

INK = "#010203"
# Okabe and Ito's palette: told apart by colour-blind readers, legible on light and dark.
BLUE, ORANGE, GREEN, PINK, YELLOW, RED = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#b8a800",
    "#d55e00",
)
SERIES = (BLUE, ORANGE, GREEN, PINK, YELLOW)


def colour_of(config: SplitConfig) -> str:
    """Of the chosen cut's mark: green is for certified cuts alone."""
    return GREEN if config.standing == "safe" else BLUE


def label_of(config: SplitConfig) -> str:
    """What the chosen cut's mark is called."""
    return "chosen cut" if config.standing == "safe" else f"candidate ({config.standing})"


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches with one bare pair of axes.

    Raises:
        BackendError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendError("reports need matplotlib; pip install 'partopt[report]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def legend_of(axes: Any, **where: Any) -> None:
    """A legend without a frame."""
    legend = axes.legend(frameon=False, fontsize=9, labelcolor=INK, **where)
    legend.set_in_layout(True)


def to_svg(figure: Any, label: str) -> str:
    """The figure as an inline SVG element with `label` as its text alternative."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "partopt"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Clip paths and markers of several charts on one page must not share names.
    prefix = re.sub(r"[^a-z]", "", label.lower())[:24]
    text = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", text)
    safe = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return text.replace("<svg ", f'<svg role="img" aria-label="{safe}" ', 1)


def to_png(figure: Any) -> bytes:
    """The figure as a PNG on white."""
    figure.patch.set_alpha(1)
    figure.patch.set_facecolor("white")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


def _names(config: SplitConfig) -> list[str]:
    chosen = config.cut.name if config.cut else None
    return [("▶ " if r.name == chosen else "") + _plain(r.name) for r in config.cuts]


def _plain(name: str) -> str:
    """A name in which matplotlib finds no formula."""
    return name.replace("$", r"\$")


def _whence(config: SplitConfig) -> str:
    """Where and when times were taken; a long name is cut, the page has it in full."""
    if config.taken is None:
        return "machine not known"
    return _plain(f"{config.taken.machine.name[:40]}, {config.taken.at}")


def latency(config: SplitConfig) -> Any:
    """Stacked bars of enclave, hand-off and accelerator time by cut, and the full-enclave line."""
    rows = config.cuts
    figure, axes = new_figure(8.2, 1.4 + 0.24 * len(rows))
    y = list(range(len(rows)))[::-1]
    left = [0.0] * len(rows)
    parts = (("enclave", BLUE), ("handoff", ORANGE), ("accelerator", GREEN))
    for part, colour in parts:
        values = [getattr(r.latency_ms, part).ms for r in rows]
        axes.barh(y, values, left=left, color=colour, label=part.replace("handoff", "hand-off"))
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.axvline(config.full_enclave_ms.ms, color=RED, ls="--", label="all in the enclave")
    axes.set_yticks(y, _names(config))
    bases = sorted({r.latency_ms.total.basis for r in rows})
    axes.set_xlabel(f"milliseconds a run ({', '.join(bases)}; {_whence(config)})")
    axes.margins(y=0.01)
    legend_of(axes, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=4)
    return figure


def leakage(config: SplitConfig) -> Any:
    """Score by cut for each attacker with intervals, floor, threshold and suffix maximum."""
    rows, privacy = config.cuts, config.privacy
    figure, axes = new_figure(8.2, 4.6)
    x = list(range(len(rows)))
    for attacker, colour in zip((a.name for a in privacy.attackers), SERIES, strict=False):
        found = [
            (i, a)
            for i, r in enumerate(rows)
            for a in r.attacks
            if a.attacker == attacker and a.score is not None
        ]
        if not found:
            continue
        scores = [a.score or 0.0 for _, a in found]
        low = [max(0.0, s - (a.low or 0.0)) for s, (_, a) in zip(scores, found, strict=True)]
        high = [max(0.0, (a.high or 0.0) - s) for s, (_, a) in zip(scores, found, strict=True)]
        axes.errorbar(
            [i for i, _ in found],
            scores,
            yerr=[low, high],
            color=colour,
            marker="o",
            ms=4,
            lw=1.2,
            capsize=2,
            label=attacker,
        )
    known = [(i, r.suffix_score) for i, r in enumerate(rows) if r.suffix_score is not None]
    axes.step(
        [i for i, _ in known],
        [s for _, s in known],
        where="mid",
        color=INK,
        lw=1,
        ls=":",
        label="largest here and later",
    )
    axes.axhline(privacy.threshold, color=RED, ls="--", label=f"threshold {privacy.threshold:g}")
    floor = privacy.floor if privacy.scale == "raw" else 0.0
    axes.axhline(floor, color=INK, lw=0.8, label="floor (never seeing the features)")
    if config.cut is not None:
        chosen = [r.name for r in rows].index(config.cut.name)
        axes.axvline(chosen, color=colour_of(config), lw=6, alpha=0.25, label=label_of(config))
    names = [_plain(r.name) for r in rows]
    axes.set_xticks(x, names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_ylabel("raw SSIM" if privacy.scale == "raw" else "SSIM above the floor (0 to 1)")
    axes.set_ylim(bottom=min(0.0, floor) - 0.02, top=1.0)
    legend_of(axes, loc="upper right")
    return figure


def front(config: SplitConfig) -> Any:
    """Latency against leakage, one point a cut, the chosen one marked."""
    figure, axes = new_figure(8.2, 4.2)
    colours = {"safe": GREEN, "screened": BLUE, "leaks": RED, "undecided": YELLOW}
    for status in ("safe", "screened", "undecided", "leaks"):
        rows = [r for r in config.cuts if r.status == status and r.suffix_score is not None]
        if rows:
            axes.scatter(
                [r.latency_ms.total.ms for r in rows],
                [r.suffix_score for r in rows],
                color=colours[status],
                label=status,
            )
    if config.cut is not None:
        row = next(r for r in config.cuts if r.name == config.cut.name)
        if row.suffix_score is not None:
            point = (row.latency_ms.total.ms, row.suffix_score)
            axes.scatter(
                *point, marker="*", s=220, color=colour_of(config), edgecolor=INK, zorder=3
            )
            axes.annotate(
                _plain(row.name),
                point,
                xytext=(8, 10),
                textcoords="offset points",
                color=INK,
                fontsize=9,
            )
    axes.axhline(config.privacy.threshold, color=RED, ls="--", label="threshold")
    axes.set_xlabel(f"total milliseconds a run ({_whence(config)})")
    axes.set_ylabel("score here or later")
    legend_of(axes, loc="upper right")
    return figure


def graph(config: SplitConfig) -> Any:
    """The chain of cuts as boxes as wide as their share of the work, the cut drawn in."""
    figure, axes = new_figure(8.2, 2.0)
    axes.set_axis_off()
    total = max(1, max(r.head_flops for r in config.cuts))
    head_end = -1
    if config.cut is not None:
        head_end = [r.name for r in config.cuts].index(config.cut.name)
    before = 0.0
    boundary = None
    for i, row in enumerate(config.cuts):
        end = row.head_flops / total + 0.004 * (i + 1)
        inside = i <= head_end
        axes.barh(
            0,
            end - before,
            left=before,
            height=0.8,
            color=BLUE if inside else GREEN,
            alpha=0.9 if inside else 0.55,
            edgecolor=INK,
            lw=0.4,
        )
        if i == head_end:
            boundary = end
        before = end
    if boundary is not None and config.cut is not None:
        axes.plot([boundary] * 2, [-0.7, 0.75], color=RED, lw=2.5)
        right = boundary > before / 2
        axes.text(
            boundary,
            0.85,
            f"cut after {_plain(config.cut.name)}",
            color=INK,
            fontsize=10,
            ha="right" if right else "left",
        )
    axes.text(0, -0.95, "head: enclave", color=INK, fontsize=9)
    axes.text(before, -0.95, "tail: accelerator", color=INK, fontsize=9, ha="right")
    axes.set_ylim(-1.1, 1.2)
    return figure


CHARTS: dict[str, tuple[Callable[[SplitConfig], Any], str]] = {
    "leakage": (leakage, "Score by cut for each attacker, with floor and threshold"),
    "latency": (latency, "Latency by cut: enclave, hand-off and accelerator"),
    "front": (front, "Latency against leakage, one point a cut"),
    "graph": (graph, "The layers as a chain, with the cut drawn in"),
}
