"""A split config as a table that a person can read and believe."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..config import CutInfo, CutRow, Recommendation, SplitConfig
from ..graph.build import Cut, LayerGraph
from ..optimizer.choose import compares
from ..optimizer.sweep import bound
from ..printable import printable
from .people import by_side, compared, more_images, other_seeds, people
from .taken import taken, void

_STYLE = {
    "safe": "green",
    "screened": "yellow",
    "leaks": "red",
    "undecided": "yellow",
    "failed": "red bold",
}
_WORD = {
    "safe": "safe",
    "screened": "screened",
    "leaks": "leaks",
    "undecided": "not proven safe",
    "failed": "attack failed",
    "not attacked": "not attacked",
}


def human_bytes(count: float) -> str:
    """Bytes with a unit.

    >>> human_bytes(401408)
    '392 KiB'
    """
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def render(config: SplitConfig) -> RenderableType:
    """The whole answer: verdict, table, what was measured, warnings."""
    config = config.shown()
    return Group(_verdict(config), Text(), _cuts(config), Text(), failures(config), _notes(config))


def failures(config: SplitConfig) -> Text:
    """Why attacks failed, a line for each reason; empty where none did."""
    text = Text()
    for line in failed_attacks(config):
        text.append("! ", style="bold red")
        text.append(line + "\n")
    return text


def failed_attacks(config: SplitConfig) -> list[str]:
    """A sentence for each reason that attacks failed for, with where."""
    reasons: dict[str, list[str]] = {}
    for row in config.cuts:
        for attack in row.attacks:
            if attack.outcome == "failed":
                where = f"{attack.attacker} on {row.name}"
                reasons.setdefault(attack.note or "no reason is known", []).append(where)
    return [
        f"attack failed, which counts as leaking: {', '.join(where[:4])}"
        + (f" and {len(where) - 4} more" if len(where) > 4 else "")
        + f": {note}"
        for note, where in reasons.items()
    ]


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _interval(row: CutRow) -> str:
    if row.low is None or row.high is None:
        return "-"
    return f"{row.low:.2f}-{row.high:.2f}"


def _verdict(config: SplitConfig) -> Text:
    p = config.privacy
    scale = "above-floor SSIM" if p.scale == "corrected" else "raw SSIM"
    if config.cut is None or config.latency_ms is None:
        text = Text("No safe cut", style="bold red")
        closest = min(
            (r for r in config.cuts if r.suffix_score is not None),
            key=lambda r: r.suffix_score or 0.0,
            default=None,
        )
        text.append(f" of {config.model.spec} at {scale} {p.threshold:g}", style="not bold")
        if any(r.status == "undecided" for r in config.cuts) and p.shortfall:
            text.append(f": {p.shortfall}", style="not bold")
        elif closest is not None:
            text.append(
                f": the closest, {closest.name}, reaches {closest.suffix_score:.2f} here or later",
                style="not bold",
            )
        return text
    lat = config.latency_ms
    plain = f"{scale} {upper_ends(config)} < {p.threshold:g}"
    doubt = uncertified(config)
    colour = "bold yellow" if doubt else "bold green"
    if advised(config) == "do not split":
        text = Text("Do not split ", style="bold yellow")
        text.append(
            f"{config.model.spec}: all of it in the enclave takes {lat.full_enclave.ms:.1f} ms and "
            f"leaks nothing; the fastest {'candidate' if doubt else 'safe cut'}, after ",
            style="not bold",
        )
        text.append(config.cut.name, style=colour)
        text.append(doubt, style=colour)
        text.append(f", {lat.total.ms:.1f} ms ({plain}) [{lat.total.basis}]", style="not bold")
    else:
        text = Text("Candidate cut after " if doubt else "Cut after ", style="bold")
        text.append(config.cut.name, style=colour)
        text.append(doubt, style=colour)
        times = (
            f"{lat.total.ms:.1f} ms against {lat.full_enclave.ms:.1f} ms all in the enclave "
            f"[{lat.total.basis}]"
        )
        if advised(config) == "not compared":
            times = outside(config)
        text.append(f" of {config.model.spec}: {plain}, {times}", style="not bold")
    if p.protocol == "paper":
        text.append("  PUBLISHED RULE, CERTIFIES NOTHING", style="bold yellow")
    elif p.screens:
        text.append("  SCREENING ONLY", style="bold yellow")
    if config.model.random_weights:
        text.append("  RANDOM WEIGHTS", style="bold red")
    return text


def uncertified(config: SplitConfig) -> str:
    """`` (screened, not certified)`` and the like; empty where the chosen cut is certified safe."""
    standing = config.standing
    return "" if standing in (None, "safe") else f" ({standing}, not certified)"


def advised(config: SplitConfig) -> Recommendation:
    """Whether to split; for results of older versions from their times' origins."""
    if config.recommendation is not None:
        return config.recommendation
    lat = config.latency_ms
    void = lat is not None and not compares(lat.full_enclave, lat.full_accelerator)
    return "not compared" if void else "split"


def outside(config: SplitConfig) -> str:
    """What a cut is worth where times say nothing of a deployment."""
    assert config.cut is not None
    return f"leaves {left_outside(config.cut)} to the accelerator; {void(config)}"


def left_outside(cut: CutInfo) -> str:
    """The share of the work, in FLOPs, behind a cut."""
    head, tail = cut.head_flops, cut.tail_flops
    share = tail / max(1, head + tail)
    return f"{share:.0%} of the work ({tail / 1e6:.4g} of {(head + tail) / 1e6:.4g} MFLOP)"


def upper_ends(config: SplitConfig) -> str:
    """The score at the chosen cut, its own upper end, and the largest of here and later."""
    p = config.privacy
    if p.score is None or p.high is None:
        return "-"
    row = next((r for r in config.cuts if config.cut and r.name == config.cut.name), None)
    later = p.suffix_high if p.suffix_high is not None else row and row.suffix_high
    there = f"{p.score:.2f} (at most {p.high:.2f} at this cut"
    return f"{there})" if later is None else f"{there}, {later:.2f} here or later)"


def swept(config: SplitConfig) -> str | None:
    """What became of the cuts that were not attacked in full, in one sentence."""
    if config.sweep is None:
        return None
    rows = [(a.high, s.name) for s in config.sweep.cuts for a in s.attacks if a.high is not None]
    full = [r.name for r in config.cuts if r.swept]
    if not config.sweep.cuts and not full:
        return "every cut from the answer on was attacked in full; none was left to sweep"
    asked = {r.name for r in config.cuts}
    covered = sum(s.name in asked for s in config.sweep.cuts)
    said = f"{len(config.sweep.cuts) - covered} unsampled cuts"
    said += f" and {covered} covered ones swept" if covered else " swept"
    if rows:
        said += ", highest upper end {:.2f} at {}".format(*max(rows))
    most = bound(config.privacy.threshold, config.sweep.sketch.lead, config.sweep.sketch.proportion)
    said += f" (attacked in full from {most:.2f} on"
    return said + (f": {', '.join(full)})" if full else ": none)")


def _cuts(config: SplitConfig) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("cut (last in enclave)", no_wrap=True)
    for name in ("enclave", "hand-off", "GPU/CPU", "total ms", "payload", "SSIM", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("95 %", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in config.cuts:
        chosen = config.cut is not None and row.name == config.cut.name
        lat = row.latency_ms
        verdict = _WORD[row.status]
        if "later cut" in row.reason:
            verdict += " (a later cut)"
        if row.swept:
            verdict += ", swept"
        if row.covered_by:
            verdict += ", covered"
        table.add_row(
            ("> " if chosen else "  ") + row.name,
            f"{lat.enclave.ms:.2f}",
            f"{lat.handoff.ms:.2f}",
            f"{lat.accelerator.ms:.2f}",
            f"{lat.total.ms:.2f}",
            human_bytes(row.payload_bytes),
            _score(row.ssim_raw),
            _score(row.score),
            _interval(row),
            Text(verdict, style=_STYLE.get(row.status, "dim")),
            style="bold" if chosen else "",
        )
    return table


def _notes(config: SplitConfig) -> Text:
    p = config.privacy
    first = config.cuts[0].latency_ms
    lines = [
        f"SSIM: mean over {p.images['test']} unseen images at {compared(config)}, best "
        f"of {', '.join(a.name for a in p.attackers)}; floor (never seeing the features) "
        f"{p.floor:.2f}; "
        + (
            "score = (SSIM - floor) / (1 - floor)" if p.scale == "corrected" else "score = raw SSIM"
        ),
        f"Data: {p.data}. Weights: {config.model.weights}. Protocol: {p.protocol}. "
        f"Evidence: {p.evidence}.",
        f"Times: enclave {first.enclave.basis} on {first.enclave.backend}; hand-off "
        f"{first.handoff.basis} over {first.handoff.backend}; accelerator "
        f"{first.accelerator.basis} on {first.accelerator.backend}.",
    ]
    origin = taken(config.taken)
    lines.append(f"{origin[0].upper()}{origin[1:]}.")
    lat = config.latency_ms
    if lat is not None:
        lines[-2] += f" {lat.threads} thread(s), batch {lat.batch}."
        if lat.verified is not None:
            v = lat.verified
            lines.append(
                f"Run for real: {v.measured_ms:.2f} ms against {v.predicted_ms:.2f} ms predicted "
                f"({v.error:+.1%}); measured parts alone, nothing modelled."
            )
        if lat.worker is not None:
            w = lat.worker
            lines.append(
                f"Inside Gramine: {w.start_s:.1f} s to start, {w.load_s:.2f} s to load the model, "
                f"{human_bytes(w.peak_bytes)} at the peak; not part of the times above."
            )
    if by_side(config):
        lines.append(f"At the cut, the largest mean counts: {by_side(config)}.")
    if people(config):
        lines.append(f"At the cut, {people(config)}.")
    for said in (other_seeds(config), more_images(config)):
        if said:
            lines.append(f"At the cut, {said}.")
    found = swept(config)
    if found is not None:
        lines.append(f"Sweep: {found}.")
    s = config.search
    lines.append(
        f"Search: {s.trials_run} attacks run, {s.trials_reused} reused, "
        f"{s.attack_seconds:.0f} s, {s.image_steps} training image-steps."
    )
    text = Text("\n".join(lines) + "\n")
    for warning in config.warnings:
        text.append("! ", style="bold yellow")
        text.append(warning + "\n")
    return text


def render_graph(graph: LayerGraph, cuts: list[Cut]) -> Table:
    """The cuts of a model and what each costs, without attacks."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("cut (last in enclave)", no_wrap=True)
    columns = ("tensors", "payload", "head GFLOP", "share", "head params", "head peak", "layers")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("same as")
    total = max(1, graph.flops)
    for cut in cuts:
        table.add_row(
            printable(cut.name),
            str(len(cut.boundary)),
            human_bytes(cut.payload_bytes),
            f"{cut.head_flops / 1e9:.3f}",
            f"{cut.head_flops / total:.0%}",
            human_bytes(cut.head_param_bytes),
            human_bytes(cut.head_peak_activation_bytes),
            f"{cut.head_layers}+{cut.tail_layers}",
            printable(", ".join(cut.aliases)),
        )
    return table
