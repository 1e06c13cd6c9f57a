"""The times of a profile as a table."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..printable import printable
from ..profilers.target import TargetProfile
from ..studies.profiling import Profiled
from .table import human_bytes
from .taken import machine


def render(profiled: Profiled) -> RenderableType:
    """The cuts asked for with their times, the whole model, machine and conditions."""
    target = profiled.target
    how = target.conditions
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("cut (last in enclave)", no_wrap=True)
    columns = ("enclave", "hand-off", "GPU/CPU", "total ms", "payload", "head params", "head peak")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    times = target.profile(profiled.indices)
    for index, latency in zip(profiled.indices, times.cuts, strict=True):
        cut = target.cuts[index]
        parts = (latency.enclave, latency.handoff, latency.accelerator, latency.total)
        table.add_row(
            printable(cut.name),
            *(f"{part.ms:.2f}" for part in parts),
            human_bytes(cut.payload_bytes),
            human_bytes(cut.head_param_bytes),
            human_bytes(cut.head_peak_activation_bytes),
        )
    lines = [
        f"Whole model: {times.full_enclave.ms:.2f} ms on {how.enclave}, "
        f"{times.full_accelerator.ms:.2f} ms on {how.accelerator}; {how.threads} thread(s), batch "
        f"{how.batch}, {how.repetitions} repetitions.",
        f"Taken on {machine(target.taken.machine)} at {target.taken.at}.",
    ]
    if times.worker is not None:
        w = times.worker
        lines.append(
            f"Inside Gramine: {w.start_s:.1f} s to start, {w.load_s:.2f} s to load the model, "
            f"{human_bytes(w.peak_bytes)} at the peak; not part of the times above."
        )
    text = Text("\n".join(lines) + "\n")
    for warning in profiled.warnings:
        text.append("! ", style="bold yellow")
        text.append(printable(warning) + "\n")
    return Group(table, Text(), text)


def told(target: TargetProfile) -> str:
    """What a profile holds, in a line."""
    return (
        f"{len(target.cuts)} cuts of {printable(target.model.spec)} on "
        f"{printable(target.taken.machine.name)}"
    )
