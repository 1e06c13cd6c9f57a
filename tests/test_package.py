"""The house: public names, one-way imports, what an installation holds."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import partopt

ROOT = Path(__file__).resolve().parents[1]
# Arrows run from the left to the right; whatever is in none of these is a shared module.
ORDER = [
    "cli",
    "commands",
    "testing|reporting",
    "studies",
    "optimizer",
    "profilers|attackers|plans",
    "enclave_runner",
    "models",
    "identity",
    "graph",
    "settings",
    "images|arguments|blinded",
    "shared",
]
PACKAGES = [p.parent.name for p in ROOT.glob("*/__init__.py")]


def modules() -> list[Path]:
    return [*ROOT.glob("*.py"), *(p for d in PACKAGES for p in (ROOT / d).rglob("*.py"))]


def place(name: str) -> int:
    top = name.split(".")[0]
    for i, level in enumerate(ORDER):
        if top in level.split("|"):
            return i
    return len(ORDER) - 1


def imports(path: Path) -> set[str]:
    """Dotted names below the package that a module imports, functions included."""
    parent = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parent[: len(parent) - node.level + 1]
            names = [node.module] if node.module else [a.name for a in node.names]
            found |= {".".join([*base, n]) for n in names if n}
    return found


def test_every_exported_name_is_there():
    for name in partopt.__all__:
        assert getattr(partopt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = partopt.nope


def test_imports_run_one_way():
    for path in modules():
        if path.name in ("__init__.py", "__main__.py") and path.parent == ROOT:
            continue
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for other in imports(path):
            same = own.split(".")[0] == other.split(".")[0] and "." in own
            assert same or place(own) < place(other) or place(own) == len(ORDER) - 1, (own, other)
            if place(own) == len(ORDER) - 1:
                assert place(other) == len(ORDER) - 1, (own, other)


def test_no_import_circles():
    graph = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts): imports(p)
        for p in modules()
        if p.name != "__init__.py"
    }
    done, path = set(), []

    def visit(name: str) -> None:
        assert name not in path, f"circle: {' -> '.join([*path, name])}"
        if name in done or name not in graph:
            return
        path.append(name)
        for other in graph[name]:
            visit(other)
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_nothing_unpickles():
    for path in modules():
        text = path.read_text()
        assert "import pickle" not in text, path
        assert "weights_only=False" not in text, path
        assert "allow_pickle=True" not in text, path


def test_importing_partopt_is_cheap():
    code = "import sys, partopt; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_wheel_holds_the_package_alone(tmp_path):
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"),
            *("-w", str(tmp_path), str(ROOT)),
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {n.split("/")[0] for n in names}
    assert {t.split("-")[0] for t in tops} == {"partopt"}
    assert len(tops) == 2
    assert not any("tests" in n or "benchmarks" in n for n in names)
    assert {"partopt/py.typed", "partopt/reporting/report.html.j2"} <= set(names)
    assert "partopt/optimizer/find.py" in names
