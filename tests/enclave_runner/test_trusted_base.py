"""What a reviewer of the enclave has to read: the head worker's imports, to the last module."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import partopt

ROOT = Path(partopt.__file__).resolve().parent
# All of partopt that runs in the enclave. A module that is added here is one more to trust.
TRUSTED = {
    "errors",
    "pixels",
    "preprocessing",
    "enclave_runner.accepted",
    "enclave_runner.decoding",
    "enclave_runner.ends",
    "enclave_runner.filedrop",
    "enclave_runner.frames",
    "enclave_runner.head",
    "enclave_runner.layouts",
    "enclave_runner.messages",
    "enclave_runner.operators",
    "enclave_runner.parts",
    "enclave_runner.programs",
    "enclave_runner.quote",
    "enclave_runner.sealing",
    "enclave_runner.session",
    "enclave_runner.shm",
    "enclave_runner.start",
    "enclave_runner.tcp",
    "enclave_runner.transport",
}
PACKAGES = {"PIL", "cryptography", "numpy", "safetensors", "torch"}
# The runner's parts. The inside is started by name, and imported by nothing but itself.
PARTS = {
    "inside": "decoding head probe quote rehearsal",
    "wire": "accepted areas ends filedrop frames layouts messages session shm start tcp transport",
    "program": "operators optimise parts programs recording sealing timed",
    "bundles": "bundle describing export footprint gramine halves manifest sides signing",
    "top": (
        "attestation bench client doctor launcher orchestrator pictures presence probing tail "
        "tail_service"
    ),
}
MAY_IMPORT = {
    "inside": {"inside", "wire", "program"},
    "wire": {"wire"},
    "program": {"program", "wire"},
    "bundles": {"bundles", "program", "wire"},
    "top": {"top", "bundles", "program", "wire"},
}
PART = {name: part for part, names in PARTS.items() for name in names.split()}


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but what stands under ``if TYPE_CHECKING``, which never runs."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from walk(child)


def imported(name: str) -> Iterator[str]:
    """Dotted names that a module imports, in functions too; with a dot before those of partopt."""
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    parent = name.split(".")[:-1]
    for node in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
        elif isinstance(node, ast.ImportFrom):
            base = parent[: len(parent) - node.level + 1]
            names = [node.module] if node.module else [a.name for a in node.names]
            yield from ("." + ".".join([*base, n]) for n in names)


def closure(name: str) -> tuple[set[str], set[str]]:
    """Modules of partopt and packages of others that importing `name` may bring in."""
    own, packages, left = set(), set(), [name]
    while left:
        here = left.pop()
        if here in own:
            continue
        own.add(here)
        for other in imported(here):
            if other.startswith("."):
                left.append(other[1:])
            else:
                packages.add(other.split(".")[0])
    return own, packages - {*sys.stdlib_module_names, "__future__"}


def test_the_head_worker_imports_what_is_listed_and_no_more():
    own, packages = closure("enclave_runner.head")
    assert own == TRUSTED
    assert packages == PACKAGES


def test_what_comes_along_is_empty():
    """Importing a module runs the packages above it."""
    assert not list(imported("enclave_runner.__init__"))
    lazily = {"__future__", "importlib", "typing"}
    assert set(imported("__init__")) <= lazily


def test_every_file_of_the_runner_has_its_part():
    files = {p.stem for p in (ROOT / "enclave_runner").glob("*.py")} - {"__init__"}
    assert files == PART.keys()


@pytest.mark.parametrize("name", PART)
def test_the_runners_arrows_run_one_way(name):
    for other in imported(f"enclave_runner.{name}"):
        place, _, there = other.removeprefix(".").partition(".")
        if other.startswith(".enclave_runner."):
            assert PART[there] in MAY_IMPORT[PART[name]], (name, there)
        elif other.startswith(".") and PART[name] == "inside":
            assert place in TRUSTED, (name, other)


def test_nobody_else_imports_the_inside():
    folders = ("", "attackers", "optimizer", "profilers", "reporting", "benchmarks")
    for path in (p for f in folders for p in (ROOT / f).glob("*.py")):
        name = path.relative_to(ROOT)
        for other in imported(".".join(name.with_suffix("").parts)):
            place, _, there = other.rpartition(".")
            assert not (place.endswith("enclave_runner") and PART.get(there) == "inside"), name
