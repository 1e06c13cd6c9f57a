"""One result as a page, as Markdown, as a picture or as a table of values; two side by side."""

from __future__ import annotations

import base64
import csv
import io
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..attackers.pictures import stored
from ..cache import written_whole
from ..config import Attack, CutRow, SplitConfig
from ..errors import BackendError, UsageError
from .charts import CHARTS, to_png, to_svg
from .people import by_side, compared, more_images, other_seeds, people
from .table import (
    advised,
    failed_attacks,
    human_bytes,
    outside,
    swept,
    uncertified,
    upper_ends,
)
from .taken import taken

FORMATS = ("html", "md", "svg", "png", "csv")
_MAX_PICTURE = 8 << 20


@dataclass(frozen=True)
class Picture:
    """Originals over reconstructions at one cut, as a data URL."""

    title: str
    alt: str
    url: str


def verdict(config: SplitConfig) -> str:
    """The answer in one sentence."""
    p, m = config.privacy, config.model
    scale = "SSIM above the floor" if p.scale == "corrected" else "raw SSIM"
    if config.cut is None or config.latency_ms is None:
        if any(r.status == "undecided" for r in config.cuts) and p.shortfall:
            return f"No cut of {m.spec} is decided: {p.shortfall}."
        return f"No cut of {m.spec} keeps every attack below {p.threshold:g} ({scale})."
    lat = config.latency_ms
    doubt = uncertified(config)
    name = f"{config.cut.name}{doubt}"
    what = f"the strongest attack on unseen images reaches {upper_ends(config)} in {scale}, "
    what += f"threshold {p.threshold:g}"
    if p.protocol == "paper":
        what = (
            f"by the published rule alone, which certifies nothing: the c-GAN's mean {scale} is "
            f"{p.score or 0.0:.2f} there and below {p.threshold:g} at every later point"
        )
    if advised(config) == "do not split":
        return (
            f"Do not split {m.spec}: all of it in the enclave takes {lat.full_enclave.ms:.1f} ms "
            f"and leaks nothing, and the fastest {'candidate' if doubt else 'safe cut'}, after "
            f"{name} ({what}), takes {lat.total.ms:.1f} ms ({lat.total.basis})."
        )
    times = f"it {outside(config)}"
    if advised(config) == "split":
        ratio = lat.full_enclave.ms / lat.total.ms if lat.total.ms else 1.0
        times = (
            f"a run takes {lat.total.ms:.1f} ms against {lat.full_enclave.ms:.1f} ms for "
            f"everything in the enclave: {ratio:.2f}x the speed ({lat.total.basis})"
        )
    if doubt:
        return f"Candidate cut of {m.spec} after {name}: {what}; {times}."
    return f"Cut {m.spec} after {name}: {what}; {times}."


def _best_attack(row: CutRow) -> Any:
    kept = [a for a in row.attacks if a.score is not None and a.key]
    return max(kept, key=lambda a: a.score or 0.0, default=None)


def pictures(config: SplitConfig) -> list[Picture]:
    """Reconstructions at the chosen cut, the cut before it, and the one that leaks most."""
    rows = config.cuts
    wanted: list[tuple[str, CutRow]] = []
    if config.cut is not None:
        index = [r.name for r in rows].index(config.cut.name)
        wanted.append(("At the chosen cut", rows[index]))
        if index:
            wanted.append(("One cut earlier", rows[index - 1]))
    scored = [r for r in rows if r.score is not None]
    if scored:
        wanted.append(("At the cut that leaks most", max(scored, key=lambda r: r.score or 0.0)))
    found, seen = [], set()
    for title, row in wanted:
        attack = _best_attack(row)
        if attack is None or row.name in seen:
            continue
        seen.add(row.name)
        picture = stored(attack.key, _MAX_PICTURE)
        if picture is None:
            continue
        data = base64.b64encode(picture).decode()
        caption = f"{title}, {row.name}: {attack.attacker}, score {attack.score:.2f}"
        alt = (
            f"Originals above, what {attack.attacker} rebuilt from the features after {row.name} "
            f"below; mean SSIM {attack.ssim_raw:.2f}"
        )
        found.append(Picture(caption, alt, f"data:image/png;base64,{data}"))
    return found


def settings(config: SplitConfig) -> list[tuple[str, str]]:
    """Every setting, as pairs of name and value."""
    p, m, s = config.privacy, config.model, config.search
    rows = [
        ("model", f"{m.spec}, traced by {m.traced_by}, input {'x'.join(map(str, m.input_shape))}"),
        ("weights", f"{m.weights} (sha256 {m.weights_hash[:16]})"),
        ("graph", f"sha256 {m.graph_hash[:16]}"),
        (
            "preprocessing",
            f"resize {m.preprocessing.resize}, crop {m.preprocessing.input_size}, "
            f"{m.preprocessing.interpolation}, mean {m.preprocessing.mean}, "
            f"std {m.preprocessing.std} ({m.preprocessing.source})",
        ),
        ("data", f"{p.data} (sha256 {p.data_hash[:16]})"),
        ("images", ", ".join(f"{k} {v}" for k, v in p.images.items())),
        ("skipped files", "; ".join(p.skipped) or "none"),
        ("protocol", p.protocol),
        ("tuning", f"{p.tuned} settings of each attacker at the cut and the one before it"),
        ("threshold", f"{p.threshold:g} on the {p.scale} scale"),
        ("rule", p.rule),
        ("split or not", f"{advised(config)}: {config.recommended_because or 'from its times'}"),
        ("sweep", swept(config) or "none"),
        ("evidence", f"{p.evidence}; {p.missing}" if p.screens else p.evidence),
        ("floor", f"{p.floor:.3f} (95th percentile {p.floor_p95:.3f})"),
        ("SSIM", f"{p.ssim}; {compared(config)}"),
        ("sizes", by_side(config) or f"compared at {compared(config)}"),
        ("people", people(config) or "not counted"),
        ("other seeds", other_seeds(config) or "not trained"),
        ("more images", more_images(config) or "not extrapolated"),
    ]
    rows += [(f"attacker {a.name}", a.settings) for a in p.attackers]
    first = config.cuts[0].latency_ms
    rows += [
        (part, f"{t.basis} on {t.backend}")
        for part, t in (
            ("enclave time", first.enclave),
            ("hand-off time", first.handoff),
            ("accelerator time", first.accelerator),
        )
    ]
    rows.append(("times", taken(config.taken)))
    lat = config.latency_ms
    if lat is not None:
        rows.append(
            (
                "profile",
                f"{lat.threads} thread(s), batch {lat.batch}, {lat.repetitions} repetitions",
            )
        )
        if lat.verified is not None:
            v = lat.verified
            rows.append(
                (
                    "run for real",
                    f"{v.measured_ms:.2f} ms, predicted {v.predicted_ms:.2f} ms ({v.error:+.1%})",
                )
            )
    rows += [
        (
            "search",
            f"{s.trials_run} attacks run, {s.trials_reused} reused, {s.attack_seconds:.0f} s, "
            f"study {s.study} in {s.storage}",
        ),
        ("seed", str(config.seed)),
        ("versions", ", ".join(f"{k} {v}" for k, v in config.versions.items())),
    ]
    return rows


def html(config: SplitConfig) -> str:
    """A self-contained page: no network, no script; text is escaped.

    Raises:
        BackendError: matplotlib or Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise BackendError("reports need Jinja2; pip install 'partopt[report]'") from error
    config = config.shown()
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["bytes"] = human_bytes
    source = resources.files(__package__).joinpath("report.html.j2").read_text()
    charts = {
        name: to_svg(draw(config), f"{label}, {config.model.spec}")
        for name, (draw, label) in CHARTS.items()
    }
    return environment.from_string(source).render(
        c=config,
        failed=failed_attacks(config),
        verdict=verdict(config),
        charts=charts,
        pictures=pictures(config),
        settings=settings(config),
    )


def markdown(config: SplitConfig) -> str:
    """Verdict, table and warnings for a paper or a pull request."""
    config = config.shown()
    lines = [verdict(config), ""]
    if config.privacy.screens:
        lines += [f"**Screened, not certified: {config.privacy.missing}.**", ""]
    lines += [
        "| cut | enclave ms | hand-off ms | accelerator ms | total ms | payload | SSIM | score "
        "| 95 % | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in config.cuts:
        lat = row.latency_ms
        chosen = config.cut is not None and row.name == config.cut.name
        name = "`" + row.name.replace("`", "'").replace("|", "\\|") + "`"
        name = f"**{name}**" if chosen else name
        times = [lat.enclave.ms, lat.handoff.ms, lat.accelerator.ms, lat.total.ms]
        interval = "-" if row.low is None else f"{row.low:.2f}-{row.high:.2f}"
        cells = [
            name,
            *(f"{f:.2f}" for f in times),
            human_bytes(row.payload_bytes),
            _number(row.ssim_raw),
            _number(row.score),
            interval,
            row.status,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    origin = taken(config.taken)
    lines += ["", f"{origin[0].upper()}{origin[1:]}."]
    lines += ["", *(f"- {w}" for w in [*failed_attacks(config), *config.warnings])]
    return "\n".join(lines).replace("<", "&lt;") + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def as_csv(config: SplitConfig) -> str:
    """One line per cut and attacker, with latency and origin of every figure."""
    config = config.shown()
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "cut",
            "chosen",
            "status",
            "attacker",
            "outcome",
            "ssim_raw",
            "score",
            "low",
            "high",
            "enclave_ms",
            "handoff_ms",
            "accelerator_ms",
            "total_ms",
            "basis",
            "payload_bytes",
            "head_flops",
            "machine",
            "taken_at",
        ]
    )
    at = config.taken
    origin = [_inert(at.machine.name), at.at] if at else ["", ""]
    for row in config.cuts:
        lat = row.latency_ms
        chosen = config.cut is not None and row.name == config.cut.name
        attacks: list[Attack | None] = [*row.attacks] or [None]
        for a in attacks:
            writer.writerow(
                [
                    _inert(row.name),
                    chosen,
                    row.status,
                    *(
                        [_inert(a.attacker), a.outcome, a.ssim_raw, a.score, a.low, a.high]
                        if a
                        else [""] * 6
                    ),
                    lat.enclave.ms,
                    lat.handoff.ms,
                    lat.accelerator.ms,
                    lat.total.ms,
                    lat.total.basis,
                    row.payload_bytes,
                    row.head_flops,
                    *origin,
                ]
            )
    return out.getvalue()


def _inert(text: str) -> str:
    """A name that a spreadsheet takes as text, not as a formula."""
    return "'" + text if text[:1] in "=+-@\t\r" else text


def write(config: SplitConfig, kind: str, path: Path, chart: str = "leakage") -> None:
    """Write the report in one of `FORMATS`; `chart` names the one for svg and png.

    Raises:
        UsageError: An unknown format or chart.
    """
    if kind not in FORMATS:
        raise UsageError(f"`format` got {kind!r}; use {', '.join(FORMATS)}")
    if chart not in CHARTS:
        raise UsageError(f"`chart` got {chart!r}; use {', '.join(CHARTS)}")
    config = config.shown()
    draw, label = CHARTS[chart]
    text: dict[str, Any] = {
        "html": lambda: html(config),
        "md": lambda: markdown(config),
        "csv": lambda: as_csv(config),
        # On its own an SVG has no page to take its colours from.
        "svg": lambda: to_svg(draw(config), label).replace("<svg ", '<svg color="#1a1a1a" ', 1),
    }
    data = to_png(draw(config)) if kind == "png" else text[kind]().encode()
    with written_whole(path) as temporary:
        temporary.write_bytes(data)
