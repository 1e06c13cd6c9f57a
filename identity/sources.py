"""Digests of this package's own source: a result is worth what the code that made it is worth."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from ..errors import PartoptError

_ROOT = Path(__file__).resolve().parents[1]
# What these do changes no feature map and no score.
_WITHOUT_EFFECT = {_ROOT / name for name in ("errors.py", "cache.py", "config.py")}


@cache
def feature_source() -> str:
    """SHA-256 of the code that makes feature maps: tracing, parting, layout, normalisation."""
    return _digest(_with_imports([_ROOT / "attackers" / "features.py"]))


@cache
def attack_source() -> str:
    """SHA-256 of the code that attacks: every attacker, what it is given, how it is scored."""
    made = ("pairs", "floor", "attempt")
    start = [*(_ROOT / "attackers").glob("*.py"), *(_ROOT / "optimizer" / f"{n}.py" for n in made)]
    return _digest([*_with_imports(start), _ROOT / "optimizer" / "search.py"])


@cache
def file_digest(path: str) -> str:
    """SHA-256 of a file, read once a process."""
    return _digest([Path(path)])


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(set(paths)):
        name = path.relative_to(_ROOT).as_posix() if path.is_relative_to(_ROOT) else path.name
        digest.update(f"{name}|".encode())
        digest.update(hashlib.sha256(_text(path)).digest())
    return digest.hexdigest()


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PartoptError(
            f"the source {path.name!r} cannot be read ({error}), and results are kept under it; "
            "install partopt unpacked"
        ) from error


def _with_imports(start: Iterable[Path]) -> set[Path]:
    """The files and all of this package that they import, directly or not."""
    found: set[Path] = set()
    left = list(start)
    while left:
        path = left.pop()
        if path not in found and path not in _WITHOUT_EFFECT:
            found.add(path)
            left += _imports(path)
    return found


@cache
def _imports(path: Path) -> list[Path]:
    files = []
    for node in ast.walk(ast.parse(_text(path))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            tried = [base.with_suffix(".py"), *(base / f"{a.name}.py" for a in node.names)]
            files += [p for p in tried if p.is_relative_to(_ROOT) and p.is_file()]
    return files
