"""The published study as Markdown, charts, strips of reconstructions and JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..attackers import pictures
from ..cache import written_whole
from ..studies.published import MODELS, TELEMETRY
from ..studies.reproduce import Point, Study
from .charts import BLUE, GREEN, INK, ORANGE, RED, legend_of, new_figure, to_png, to_svg
from .table import human_bytes
from .taken import taken

TABLES = (1, 2, 3)
FIGURES = (3, 4, 5, 6, 7, 8)
STRIPS = dict(zip(MODELS, (4, 5, 6), strict=True))
_POINTS = {"resnet50": 1, "efficientnet_b0": 2}  # the tables of cut points; VGG-16 has none
TITLES = {"vgg16": "VGG-16", "resnet50": "ResNet-50", "efficientnet_b0": "EfficientNet-B0"}


def write(
    studies: Sequence[Study], out: Path, tables: Sequence[int], figures: Sequence[int], command: str
) -> list[Path]:
    """Write what was asked for into the folder `out`; return the files."""
    out.mkdir(parents=True, exist_ok=True)
    drawn: dict[tuple[str, int], Path] = {}
    written = []
    for study in studies:
        for number, image in _pages(study, figures):
            path = out / f"figure-{number}-{study.model}{image[0]}"
            with written_whole(path) as temporary:
                temporary.write_bytes(image[1])
            written.append(path)
            if image[0] == ".png":
                drawn[study.model, number] = path
        path = out / f"{study.model}.json"
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(as_dict(study, command), indent=1) + "\n")
        written.append(path)
    page = out / "reproduce.md"
    with written_whole(page) as temporary:
        temporary.write_text(markdown(studies, tables, drawn, command))
    return [page, *written]


def as_dict(study: Study, command: str) -> dict[str, Any]:
    """Everything in a study as plain values, both split configs included."""
    plain = ("paper_config", "strict_config", "points", "published", "taken")
    found = {f.name: getattr(study, f.name) for f in fields(study) if f.name not in plain}
    found["published"] = asdict(study.published) if study.published else None
    found["points"] = [asdict(p) for p in study.points]
    found["contradicted"] = [p.cut for p in study.contradicted]
    found["taken"] = study.taken.model_dump() if study.taken else None
    found["command"] = command
    for name in ("paper_config", "strict_config"):
        found[name] = json.loads(getattr(study, name).to_json())
    return found


def markdown(
    studies: Sequence[Study],
    tables: Sequence[int],
    drawn: dict[tuple[str, int], Path],
    command: str,
) -> str:
    """All tables, with the published numbers in columns of their own."""
    parts = [
        "# The published study, reproduced",
        f"`{command}`",
        "Published: Rajasekar, Loh, Fok and Thing, [arXiv:2404.07437]"
        "(https://arxiv.org/abs/2404.07437). Their seconds are of their machine: compare ratios. "
        "The c-GAN is a reconstruction of their attack from what the paper says; no parity is "
        "claimed. *Speed-up* is given as the paper does, (full - split) / full, and as full / "
        "split. The last column is what our own panel says of the same cut.",
    ]
    for study in studies:
        parts.append(_about(study))
        number = _POINTS.get(study.model)
        if number in tables or (number is None and {1, 2} & set(tables)):
            title = TITLES.get(study.model, study.model)
            head = f"Table {'I' * number}: " if number else ""
            parts.append(f"### {head}cut points of {title}\n\n{_points_table(study)}")
        parts.append(_disagreement(study))
        parts += [
            f"![Figure {n} for {study.model}]({path.name})"
            for (model, n), path in drawn.items()
            if model == study.model
        ]
    if 3 in tables:
        parts.append(f"## Table III: the chosen cuts\n\n{_summary_table(studies)}")
    return "\n\n".join(parts) + "\n"


def _about(study: Study) -> str:
    title = TITLES.get(study.model, study.model)
    lines = [
        f"## {title} on {study.shown_data}",
        "",
        f"- weights: {study.weights}" + (" **RANDOM WEIGHTS**" if study.random_weights else ""),
        f"- data: {study.data}; {study.images['train']} training, {study.images['test']} test "
        f"images at {study.resolution}x{study.resolution}; floor {study.floor:.3f}",
        f"- times: {study.basis}, one image at {study.input_size} pixels; attacks at "
        f"{study.attacked_size}; {taken(study.taken)}",
        f"- attack: `{study.cgan}`, threshold {study.threshold:g} on the raw mean",
        *(f"- ! {note}" for note in study.notes),
    ]
    return "\n".join(lines)


def _points_table(study: Study) -> str:
    lines = [
        "| point | cut after | layers | payload | runtime ms | speed-up | ratio | c-GAN SSIM | "
        "published rule | paper reports | our panel: SSIM / score | our verdict |",
        "|---" * 12 + "|",
    ]
    lines += [_line(p, study) for p in study.points]
    return "\n".join(lines)


def _line(p: Point, study: Study) -> str:
    published = study.published
    reports = "not given"
    if published is not None and p.number == published.layer:
        reports = f"**chosen**: {_runtimes(published.full_s, published.split_s, 's')}"
    panel = "-"
    if p.strict_score is not None:
        panel = (
            f"{p.strict_attacker} {_n(p.strict_raw)} / {p.strict_score:.2f} "
            f"({_n(p.strict_low, 2)}-{_n(p.strict_high, 2)})"
        )
    rule = "safe" if p.published_safe else "leaks"
    if p.number == study.chosen:
        rule = "**safe, chosen**"
    return (
        f"| {p.number} | `{p.cut}` | {p.layers} | {human_bytes(p.payload_bytes)} | "
        f"{p.total_ms:.1f} | {_percent(p.share)} | {_times(p.ratio)} | {_n(p.cgan_ssim)} | "
        f"{rule} | {reports} | {panel} | {p.strict_status}: {p.strict_reason} |"
    )


def _summary_table(studies: Sequence[Study]) -> str:
    lines = [
        "| model | data | paper: points, layer | paper: full -> split | paper: speed-up, ratio | "
        "ours, published rule: layer | ours: full -> split | ours: speed-up, ratio | "
        "our panel on that cut | our panel's own cut |",
        "|---" * 10 + "|",
    ]
    for s in studies:
        p = s.published
        paper = (
            f"{p.points}, {p.layer} | {_runtimes(p.full_s, p.split_s, 's')} | "
            f"{_percent(p.share)}, {_times(p.ratio)}"
            if p
            else "- | - | -"
        )
        chosen = next((x for x in s.points if x.number == s.chosen), None)
        ours = (
            f"{chosen.number} (`{chosen.cut}`) | "
            f"{_runtimes(s.full_ms, chosen.total_ms, 'ms')} | "
            f"{_percent(chosen.share)}, {_times(chosen.ratio)} | {chosen.strict_status}"
            if chosen
            else "none | - | - | -"
        )
        own = next((x for x in s.points if x.number == s.strict_chosen), None)
        strict = f"{own.number} (`{own.cut}`)" if own else "none"
        title = TITLES.get(s.model, s.model)
        lines.append(
            f"| {title} | {s.shown_data} (paper: {s.kind}) | {paper} | {ours} | {strict} |"
        )
    return "\n".join(lines)


def _disagreement(study: Study) -> str:
    bad = study.contradicted
    if not bad:
        return "No point that the published rule calls safe was inverted by our panel in this run."
    names = ", ".join(
        f"`{p.cut}` (c-GAN {_n(p.cgan_ssim)}; {p.strict_attacker} {_n(p.strict_raw)})"
        if "later" not in p.strict_reason
        else f"`{p.cut}` (a later cut is inverted)"
        for p in bad
    )
    return f"**The published rule calls safe what our panel inverts:** {names}."


def _n(value: float | None, digits: int = 3) -> str:
    return "failed" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "not given" if value is None else f"{value:.1%}"


def _times(value: float | None) -> str:
    return "not given" if value is None else f"{value:.2f}x"


def _runtimes(full: float | None, split: float | None, unit: str) -> str:
    if full is None or split is None:
        return "not given"
    return f"{full:.3g} -> {split:.3g} {unit}"


def _pages(study: Study, figures: Sequence[int]) -> list[tuple[int, tuple[str, bytes]]]:
    """Figures by number, each as its suffix and bytes."""
    pages: list[tuple[int, tuple[str, bytes]]] = []
    curve = 8 if study.kind == TELEMETRY else 7
    for number, draw in ((3, runtime), (curve, leakage)):
        if number in figures:
            label = f"Figure {number} for {study.model}"
            pages.append((number, (".svg", to_svg(draw(study), label).encode())))
            pages.append((number, (".png", to_png(draw(study)))))
    number = STRIPS.get(study.model, 4)
    if number in figures and (page := strips(study)) is not None:
        pages.append((number, (".png", _png(page))))
    return pages


def _png(page: Image.Image) -> bytes:
    import io

    buffer = io.BytesIO()
    page.save(buffer, format="PNG")
    return buffer.getvalue()


def runtime(study: Study) -> Any:
    """Figure 3: runtime by cut, with the whole model in the enclave and the paper's choice."""
    figure, axes = new_figure(7.2, 3.6)
    x = [p.number for p in study.points]
    below = np.zeros(len(x))
    parts = (
        ("enclave_ms", "enclave", BLUE),
        ("handoff_ms", "hand-off", ORANGE),
        ("accelerator_ms", "accelerator", GREEN),
    )
    for name, label, colour in parts:
        values = np.array([getattr(p, name) for p in study.points])
        axes.bar(x, values, bottom=below, color=colour, label=label)
        below = below + values
    axes.axhline(study.full_ms, color=RED, ls="--", label="all in the enclave")
    _mark(axes, study)
    axes.set_xticks(x)
    axes.set_xlabel(f"cut point of {TITLES.get(study.model, study.model)}")
    axes.set_ylabel(f"milliseconds ({study.basis.split(' on ')[0]})")
    legend_of(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5)
    return figure


def leakage(study: Study) -> Any:
    """Figures 7 and 8: raw SSIM by cut of the c-GAN and of the strict panel's strongest."""
    figure, axes = new_figure(7.2, 3.6)
    curves = (("cgan_ssim", "c-GAN (published)", BLUE), ("strict_raw", "strict panel", ORANGE))
    for name, label, colour in curves:
        known = [(p.number, getattr(p, name)) for p in study.points if getattr(p, name) is not None]
        if known:
            axes.plot(*zip(*known, strict=True), color=colour, marker="o", ms=4, label=label)
    axes.axhline(study.threshold, color=RED, ls="--", label=f"threshold {study.threshold:g}")
    axes.axhline(study.floor, color=INK, lw=0.8, ls=":", label="floor")
    _mark(axes, study)
    axes.set_xticks([p.number for p in study.points])
    axes.set_ylim(min(0.0, study.floor) - 0.02, 1.0)
    axes.set_xlabel(f"cut point of {TITLES.get(study.model, study.model)}")
    axes.set_ylabel("raw SSIM")
    legend_of(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5)
    return figure


def _mark(axes: Any, study: Study) -> None:
    if study.published is not None:
        axes.axvline(
            study.published.layer, color=GREEN, lw=7, alpha=0.2, label="the paper's choice"
        )


def strips(study: Study) -> Image.Image | None:
    """Figures 4 to 6: originals, and by point what the c-GAN and the strict panel rebuilt."""
    rows: list[tuple[str, np.ndarray]] = []
    for p in study.points:
        tries = [("c-GAN", p.cgan_ssim, p.cgan_key)]
        if p.strict_key:
            tries.append((p.strict_attacker, p.strict_raw, p.strict_key))
        for name, value, key in tries:
            pair = _stored(key)
            if pair is None:
                continue
            if not rows:
                rows.append(("original", pair[0]))
            rows.append((f"{p.number} {name} {_n(value, 2)}", pair[1]))
    return pictures.sheet(rows, label=140) if rows else None


def _stored(key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Originals and reconstructions of a stored attack, each uint8 (N, 3, R, R)."""
    data = pictures.stored(key) if key else None
    if data is None:
        return None
    with Image.open(io.BytesIO(data)) as page:
        pixels = np.asarray(page.convert("RGB"))
    side = pixels.shape[0] // 2
    tiles = pixels.reshape(2, side, -1, side, 3).transpose(0, 2, 4, 1, 3)
    return tiles[0], tiles[1]
