"""What `make docs` makes itself: pages from the command line, the schemas and the results.

MkDocs calls these functions; the pages are never written into the tree, so that they cannot differ
from what they are made of.
"""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import command_page
import key_pages
import result_pages
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / ".cache" / "docs"


def on_config(config: Any) -> Any:
    """Lay the package out where mkdocstrings reads it, nothing else beside it."""
    shutil.rmtree(SOURCES, ignore_errors=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for package in project["tool"]["setuptools"]["packages"]:
        inside = Path(*package.split(".")[1:])
        target = SOURCES / "partopt" / inside
        target.mkdir(parents=True)
        for module in (ROOT / inside).glob("*.py"):
            (target / module.name).symlink_to(module)
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Add the generated pages."""
    pages = {
        "reference/cli.md": command_page.page(),
        "reference/split-config.md": key_pages.split_config(),
        "reference/settings.md": key_pages.settings_reference(),
        **result_pages.pages(ROOT / "docs" / "results"),
    }
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files
