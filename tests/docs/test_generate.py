"""The pages that `make docs` makes."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import typer

from partopt import cli
from partopt.config import SplitConfig
from partopt.settings import Entry

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch):
    """Loads a module of docs/generate."""
    folder = ROOT / "docs" / "generate"
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])

    def load(name: str):
        for other in ("command_page", "key_pages", "result_pages"):
            monkeypatch.delitem(sys.modules, other, raising=False)
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for other in ("command_page", "key_pages", "result_pages"):
        sys.modules.pop(other, None)


def test_every_command_and_option_has_its_row(tool):
    page = tool("command_page").page()
    for name, command in typer.main.get_command(cli.app).commands.items():
        section = page.partition(f"\n## partopt {name}\n")[2].partition("\n## ")[0]
        assert section
        for parameter in [p for p in command.params if not getattr(p, "hidden", False)]:
            for option in [o for o in parameter.opts if o.startswith("--")]:
                assert f"`{option}" in section, (name, option)


def test_tables_have_as_many_cells_in_every_row(tool):
    keys = tool("key_pages")
    for page in (tool("command_page").page(), keys.split_config(), keys.settings_reference()):
        for table in re.findall(r"(?:^\|.*\n?)+", page, re.M):
            rows = [re.sub(r"\\\||`[^`]*`", "", r).count("|") for r in table.splitlines()]
            assert len(set(rows)) == 1, table


def test_every_key_has_its_row(tool):
    keys = tool("key_pages")
    split, settings = keys.split_config(), keys.settings_reference()
    assert "| `schema` |" in split
    for name in SplitConfig.model_fields.keys() - {"schema_"}:
        assert f"| `{name}` |" in split
    assert "## Verified" in split, "models inside models have their tables"
    for name in Entry.model_fields:
        assert f"| `{name}` |" in settings


def test_results_show_what_their_json_holds(tool):
    results = tool("result_pages")
    folder = ROOT / "docs" / "results"
    pages = results.pages(folder)
    for file in folder.glob("*.json"):
        page = pages[f"results/{file.stem}.md"]
        for run in json.loads(file.read_text()):
            (row,) = [x for x in page.splitlines() if x.startswith(f"| `{run['cut']}` |")]
            for result in run["results"]:
                score = result["score"]
                assert f"{score['raw']:.3f} / " in row
                assert f"({score['low']:.2f}-{score['high']:.2f})" in row
            best = max(r["score"]["value"] for r in run["results"])
            assert f"**{best:.2f}**" in row


def test_results_without_their_table_are_refused(tool, tmp_path):
    folder = shutil.copytree(ROOT / "docs" / "results", tmp_path / "results")
    (folder / "new.json").write_text("[]")
    with pytest.raises(ValueError, match="'new'"):
        tool("result_pages").pages(folder)
