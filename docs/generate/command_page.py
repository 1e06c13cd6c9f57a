"""The reference of the command line, from the application itself."""

from __future__ import annotations

from typing import Any

import typer

from partopt import cli

CODES = """\
| exit code | meaning |
|---|---|
| 0 | found, or everything holds; `screened, not certified` stands in the words, not in the code |
| 1 | the run failed, or could not be decided: counts as failing |
| 2 | wrong usage; `export` of a cut that nothing certifies |
| 3 | no safe cut: the split config is written all the same, with `cut` null |
| 4 | `check`: privacy regression |
| 5 | `check`: the best cut has moved, or latency has regressed |
| 6 | not splitting is at least as fast |
| 130 | interrupted |
"""


def page() -> str:
    """Every command with its arguments and options, as Markdown."""
    group: Any = typer.main.get_command(cli.app)
    parts = ["# Command line", "", f"{group.help}", "", CODES]
    for name, command in sorted(group.commands.items()):
        with typer.Context(command, info_name=name) as context:
            parts += _section(name, command, context)
    return "\n".join(parts)


def _section(name: str, command: Any, context: Any) -> list[str]:
    usage = " ".join(["partopt", name, *command.collect_usage_pieces(context)])
    lines = [f"## partopt {name}", "", command.help or "", "", "```text", usage, "```", ""]
    rows = [_row(p, context) for p in command.params if not getattr(p, "hidden", False)]
    if rows:
        lines += ["| argument or option | meaning |", "|---|---|", *rows, ""]
    return lines


def _row(parameter: Any, context: Any) -> str:
    if parameter.param_type_name == "argument":
        shown, meaning = " ".join(parameter.get_usage_pieces(context)), parameter.help or ""
    else:
        shown, meaning = parameter.get_help_record(context)
    return f"| `{shown}` | {cell(meaning)} |"


def cell(text: str) -> str:
    """Text that stays within a cell of a table and means nothing else in Markdown."""
    for special in "\\`*_[]<>|":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())
