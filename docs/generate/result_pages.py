"""Pages of results, from the JSON that their runs wrote.

`pages.toml` beside the JSON files says what each run was: title, command and remarks.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

_RECORD = """\
!!! note "A record"
    What one run reached with what it was given. A score is a lower bound on leakage: a cut with a
    low one was not inverted by these attackers in this time, and that is all that it says.
"""
_LEGEND = """\
Raw SSIM / **score** (95 % interval), seconds. The score is above the floor, clipped at 0; the bold
one is the panel's, the largest of a row. † validation SSIM was still rising when the budget ended.
Seconds of an attacker count what it is built on.
"""


def pages(folder: Path) -> dict[str, str]:
    """Pages by address, one for each table of `pages.toml`.

    Raises:
        ValueError: A JSON file without a table, or a table without its file.
    """
    about: dict[str, dict[str, Any]] = tomllib.loads((folder / "pages.toml").read_text())
    files = {p.stem for p in folder.glob("*.json")}
    if files != set(about):
        raise ValueError(f"pages.toml and the JSON files differ: {sorted(files ^ set(about))}")
    return {
        f"results/{name}.md": page(json.loads((folder / f"{name}.json").read_text()), **told)
        for name, told in about.items()
    }


def page(runs: list[dict[str, Any]], title: str, command: str, remarks: str = "") -> str:
    """One page: the command, what was common to its attacks, and a row for each cut."""
    first = runs[0]
    names = list(dict.fromkeys(r["attacker"] for run in runs for r in run["results"]))
    parts = [f"# {title}", "", _RECORD, "```console", *command.strip().splitlines(), "```", ""]
    parts += [
        f"- Model `{first['model']}`, weights {first['weights']}.",
        f"- Data {first['data']}: "
        + ", ".join(f"{count} {part}" for part, count in first["images"].items())
        + f" images, scored at {first['resolution']}x{first['resolution']}.",
        f"- Floor (raw SSIM of the blind attacker) {first['floor']:.3f}.",
        "",
    ]
    if remarks:
        parts += [remarks.strip(), ""]
    parts += [_LEGEND, f"| cut | {' | '.join(f'`{n}`' for n in names)} |"]
    parts.append("|---" * (len(names) + 1) + "|")
    for run in runs:
        by_name = {r["attacker"]: r for r in run["results"]}
        cells = [_cell(by_name.get(n), n == run["strongest"]) for n in names]
        parts.append(f"| `{run['cut']}` | {' | '.join(cells)} |")
    parts += ["", "## Settings of the attackers", ""]
    parts += [f"- `{r['settings']}`" for r in first["results"]]
    return "\n".join(parts) + "\n"


def _cell(result: dict[str, Any] | None, strongest: bool) -> str:
    if result is None:
        return "-"
    score = result["score"]
    if score is None:
        return f"failed: {result['note']}"
    value = f"{score['value']:.2f}"
    value = f"**{value}**" if strongest else value
    mark = "†" if "still rising" in result["note"] else ""
    interval = f"({score['low']:.2f}-{score['high']:.2f})"
    return f"{score['raw']:.3f} / {value}{mark} {interval}, {result['seconds']:.0f} s"
