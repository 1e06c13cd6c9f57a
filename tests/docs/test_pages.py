"""What the documentation shows: links that lead somewhere, commands and options that are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

import partopt
from partopt import cli

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *ROOT.glob("*.md"), ROOT / "examples" / "README.md"]
MADE = re.compile(r"reference/(cli|settings|split-config)\.md|results/(panel|cgan)-\w+\.md")
COMMANDS = typer.main.get_command(cli.app).commands


def heads(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)", path.read_text(), re.M)
    return {re.sub(r"[^\w\s-]", "", t.lower()).strip().replace(" ", "-") for t in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for link in re.findall(r"\]\(\s*([^)\s]+)\)", text):
        if link.startswith(("http:", "https:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if MADE.search(str(target)):
            assert DOCS in page.parents, f"{link} is only made for the site"
            continue
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in heads(target), link


def lines(page: Path) -> list[str]:
    text = page.read_text().replace("\\\n", " ")
    return re.findall(r"^(?:\$ | {4})(partopt .*)$", text, re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_and_options_are_there(page):
    for line in lines(page):
        _, name, *rest = shlex.split(line, comments=True)
        if name.startswith("-"):
            continue
        assert name in COMMANDS, line
        known = {o for p in COMMANDS[name].params for o in p.opts}
        given = {w.partition("=")[0] for w in rest if w.startswith("--")}
        assert given <= known, line


def test_commands_are_found_at_all():
    assert sum(len(lines(p)) for p in PAGES) >= 25


def test_every_page_is_in_the_navigation():
    listed = (ROOT / "mkdocs.yml").read_text()
    for page in DOCS.rglob("*.md"):
        assert f"{page.relative_to(DOCS)}" in listed, page


def test_the_python_reference_has_every_public_name():
    text = (DOCS / "reference" / "python.md").read_text()
    for name in set(partopt.__all__) - {"__version__"}:
        assert f"::: partopt.{name}\n" in text, name
