"""The output of checks: table, JSON, JUnit XML and Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..optimizer.check import CHANGED, HOLDS, CheckResult
from ..printable import printable

_STYLE = {
    "holds": "green",
    "regressed": "bold red",
    "undecided": "red",
    "moved": "yellow",
    "slower": "yellow",
    "skipped": "dim",
}
_FAILING = {"regressed", "undecided", "moved", "slower"}


def table(results: Sequence[CheckResult]) -> RenderableType:
    """One block a split config: its verdict, then a line a property."""
    blocks: list[RenderableType] = []
    for result in results:
        style = "bold green" if result.exit_code == HOLDS else "bold red"
        if result.exit_code == HOLDS and result.caveat:
            style = "bold yellow"
        title = Text(f"{printable(result.name)}: ", style="bold").append(
            result.verdict, style=style
        )
        rows = Table(box=None, pad_edge=False, show_header=False)
        rows.add_column(no_wrap=True)
        rows.add_column(no_wrap=True)
        rows.add_column(overflow="fold")
        for p in result.properties:
            rows.add_row(f"  {p.name}", Text(p.what, style=_STYLE[p.what]), printable(p.detail))
        blocks += [title, rows]
    return Group(*blocks)


def as_json(results: Sequence[CheckResult]) -> str:
    """A list with one object a split config."""
    return (
        json.dumps(
            [
                {
                    "split": r.name,
                    "model": r.model,
                    "cut": r.cut,
                    "verdict": r.verdict,
                    "exit_code": r.exit_code,
                    "status": r.status,
                    "certified": r.exit_code in (HOLDS, CHANGED) and r.status == "safe",
                    "properties": [
                        {"name": p.name, "outcome": p.what, "detail": p.detail}
                        for p in r.properties
                    ],
                }
                for r in results
            ],
            indent=2,
        )
        + "\n"
    )


def junit(results: Sequence[CheckResult]) -> str:
    """JUnit XML: one suite a split config, one case a property.

    XML 1.0 has no control characters; names from files may.
    """
    root = ET.Element("testsuites", name="partopt check")
    for r in results:
        suite = ET.SubElement(
            root,
            "testsuite",
            name=printable(r.name),
            tests=str(len(r.properties)),
            failures=str(sum(p.what in _FAILING for p in r.properties)),
            skipped=str(sum(p.what == "skipped" for p in r.properties)),
            errors="0",
        )
        for p in r.properties:
            case = ET.SubElement(
                suite, "testcase", classname=f"partopt.{printable(r.model)}", name=p.name
            )
            if p.what in _FAILING:
                ET.SubElement(case, "failure", message=printable(p.detail), type=p.what)
            elif p.what == "skipped":
                ET.SubElement(case, "skipped", message=printable(p.detail))
            else:
                # The only place where viewers show what stands behind a case that passes.
                ET.SubElement(case, "system-out").text = printable(p.detail)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def markdown(results: Sequence[CheckResult]) -> str:
    """For a pull-request comment or a job summary: the verdict first, then what moved."""
    failing = [r for r in results if r.exit_code != HOLDS]
    head = (
        f"All {len(results)} split config(s) hold."
        if not failing
        else f"{len(failing)} of {len(results)} split config(s) do not hold: "
        + "; ".join(f"`{_cell(r.name)}` {r.verdict}" for r in failing)
    )
    screened = [r for r in results if r.exit_code == HOLDS and r.caveat]
    title = "FAILS" if failing else "holds, screened, not certified" if screened else "holds"
    if screened:
        head += f" {len(screened)} of {len(results)} screened, not certified: " + ", ".join(
            f"`{_cell(r.name)}`" for r in screened
        )
        head += '. A stronger attacker may invert them; `budget = "standard"` could certify them.'
    lines = [f"## partopt check: {title}", "", head, ""]
    for r in sorted(results, key=lambda r: r.exit_code == HOLDS):
        lines += [
            f"### `{_cell(r.name)}` ({_cell(r.model)}, cut after `{_cell(r.cut)}`): {r.verdict}",
            "",
            "| property | outcome | detail |",
            "|---|---|---|",
        ]
        order = sorted(r.properties, key=lambda p: p.what not in _FAILING)
        lines += [f"| {p.name} | {p.what} | {_cell(p.detail)} |" for p in order]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text from a file as inert Markdown."""
    inert = printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("`", "'")
    inert = inert.replace("<", "&lt;").replace("[", "\\[").replace("@", "@\u200b")
    return " ".join(inert.split())
