"""What a reviewer of the enclave has to read: the head worker's imports, to the last module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import partopt

ROOT = Path(partopt.__file__).resolve().parent
# All of partopt that runs in the enclave, whatever computes. A module more is one more to trust.
TRUSTED = {
    "enclave_runner.inside.clock",
    "enclave_runner.inside.prices",
    "errors",
    "pixels",
    "preprocessing",
    "resizing",
    "enclave_runner.wire.accepted",
    "enclave_runner.wire.addresses",
    "enclave_runner.inside.clients",
    "enclave_runner.inside.computing",
    "enclave_runner.inside.decoding",
    "enclave_runner.wire.ends",
    "enclave_runner.inside.fair",
    "enclave_runner.wire.filedrop",
    "enclave_runner.wire.frames",
    "enclave_runner.inside.head",
    "enclave_runner.wire.layouts",
    "enclave_runner.inside.listening",
    "enclave_runner.inside.memory",
    "enclave_runner.wire.messages",
    "enclave_runner.inside.opening",
    "enclave_runner.program.engine",
    "enclave_runner.program.limits",
    "enclave_runner.inside.outgoing",
    "enclave_runner.program.parts",
    "enclave_runner.inside.places",
    "enclave_runner.program.plain_json",
    "enclave_runner.wire.proofs",
    "enclave_runner.inside.quote",
    "enclave_runner.inside.reports",
    "enclave_runner.inside.requests",
    "enclave_runner.inside.scans",
    "enclave_runner.wire.sealed",
    "enclave_runner.program.sealing",
    "enclave_runner.wire.session",
    "enclave_runner.wire.shm",
    "enclave_runner.wire.start",
    "enclave_runner.inside.tails",
    "enclave_runner.inside.waking",
    "enclave_runner.wire.tcp",
    "enclave_runner.wire.transport",
}
PACKAGES = {"PIL", "cryptography", "numpy"}
# What comes to that with each engine.
ENGINES = {
    "torch": (
        {
            "enclave_runner.inside.torch_head",
            "enclave_runner.program.allowed",
            "enclave_runner.program.bounds",
            "enclave_runner.program.loading",
            "enclave_runner.program.operators",
            "enclave_runner.program.programs",
            "enclave_runner.program.tensors",
            "enclave_runner.program.torch_engine",
        },
        {"safetensors", "torch"},
    ),
    "ort": (
        {
            "enclave_runner.inside.ort_head",
            "enclave_runner.program.onnx_file",
            "enclave_runner.program.onnx_held",
            "enclave_runner.program.onnx_rules",
            "enclave_runner.program.ort_engine",
            "enclave_runner.program.ort_runtime",
            "enclave_runner.program.trial",
        },
        set(),  # the compiled module of onnxruntime, by its name alone
    ),
}
ALL = TRUSTED.union(*(modules for modules, _ in ENGINES.values()))
# The runner's folders, and what a module there may import. The inside is started by name, and
# imported by nothing but itself.
MAY_IMPORT = {
    "inside": {"inside", "wire", "program"},
    "wire": {"wire"},
    "program": {"program", "wire"},
    "lowering": {"lowering", "program", "wire"},
    "bundles": {"bundles", "lowering", "program", "wire"},
    "": {"", "bundles", "lowering", "program", "wire"},
}
RUNNER = ROOT / "enclave_runner"


def folder_of(name: str) -> str:
    """The runner's folder that a module lies in; empty for those at its top."""
    return name.removeprefix("enclave_runner.").rpartition(".")[0]


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
            whole = [*base, *(node.module or "").split(".")] if node.module else base
            if ROOT.joinpath(*whole).is_dir():
                yield from ("." + ".".join([*whole, a.name]) for a in node.names)
            else:
                yield "." + ".".join(whole)


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


def test_what_no_engine_needs_nobody_imports():
    own, packages = closure("enclave_runner.inside.head")
    assert own == TRUSTED
    assert packages == PACKAGES


@pytest.mark.parametrize("engine", ENGINES)
def test_the_head_worker_imports_what_is_listed_and_no_more(engine):
    modules, packages = ENGINES[engine]
    assert closure(f"enclave_runner.inside.{engine}_head") == (
        TRUSTED | modules,
        PACKAGES | packages,
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_running_worker_has_imported(engine):
    """Seen, too: what is imported by name, or by a package of others."""
    code = f"import partopt.enclave_runner.inside.{engine}_head, sys; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    names = {name.split(".")[0] for name in told.stdout.split()}
    assert ENGINES[engine][1] <= names
    never = {"torchvision", "optuna", "pydantic", "typer", "onnx", "partopt.graph"}
    others = set().union(*(more for name, (_, more) in ENGINES.items() if name != engine))
    assert not names & (never | others)


def test_onnxruntime_is_loaded_in_one_place():
    """Its telemetry is switched off there."""
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] not in {"tests", "build", ".venv", ".cache"}:
            assert not any(n.startswith("onnxruntime") for n in imported(".".join(parts))), path


def test_what_comes_along_is_empty():
    """Importing a module runs the packages above it."""
    for folder in ("", ".inside", ".program", ".wire"):
        assert not list(imported(f"enclave_runner{folder}.__init__"))
    lazily = {"__future__", "importlib", "typing"}
    assert set(imported("__init__")) <= lazily


def modules() -> list[str]:
    """All of the runner's modules."""
    paths = [p.relative_to(ROOT) for p in RUNNER.rglob("*.py") if p.stem != "__init__"]
    return sorted(".".join(p.with_suffix("").parts) for p in paths)


def test_every_folder_of_the_runner_has_its_rule():
    assert {folder_of(name) for name in modules()} == MAY_IMPORT.keys()


@pytest.mark.parametrize("name", modules())
def test_the_runners_arrows_run_one_way(name):
    here = folder_of(name)
    for other in imported(name):
        if other.startswith(".enclave_runner."):
            assert folder_of(other[1:]) in MAY_IMPORT[here], (name, other)
        elif other.startswith(".") and here == "inside":
            assert other[1:] in ALL, (name, other)


def test_nobody_else_imports_the_inside():
    skipped = {"tests", "build", ".venv", ".cache"}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] in skipped or parts[:2] == ("enclave_runner", "inside"):
            continue
        for other in imported(".".join(parts)):
            assert "enclave_runner.inside" not in other, (path, other)
