"""Put faults in, one at a time, and see that the tests notice.

    python tests/mutants/run.py [WORD ...]

Each fault of ``faults.toml`` (or those in whose text a WORD stands) is put into a copy of the tree,
where only the tests named beside it run. Faults that no test notices are named; the exit code is
then 1. An interpreter of the copy's own makes `partopt` the copy, in worker processes too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("faults.toml")
COPIES = 2  # worked on side by side
LIMIT_S = 900
_NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")


class Outdated(Exception):
    """A fault that cannot be put in, or tests that cannot be run."""


@dataclass(frozen=True)
class Fault:
    """`old` of `file` becomes `new`; at least one of `tests` must then fail."""

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def into(self, text: str) -> str:
        """The file's `text` with the fault."""
        if (times := text.count(self.old)) != 1:
            raise Outdated(
                f"fault no longer applies: {self.what!r} wants {self.old!r} once in {self.file}, "
                f"where it stands {times} times; update {LIST.name}"
            )
        return text.replace(self.old, self.new)


def faults(path: Path = LIST) -> list[Fault]:
    """All faults of the list."""
    listed = tomllib.loads(path.read_text())["fault"]
    return [Fault(**{**entry, "tests": tuple(entry["tests"])}) for entry in listed]


class Copy:
    """A copy of the tree, and an interpreter for which it is `partopt`."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "partopt"
        shutil.copytree(ROOT, self.root, ignore=_NOT_COPIED)
        venv.create(folder / "venv", symlinks=True)
        self.python = folder / "venv" / "bin" / "python"
        (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
        (packages / "partopt").symlink_to(self.root)  # found before what lies in the folders below
        others = [p for p in sys.path if p.endswith("-packages")]
        (packages / "others.pth").write_text("\n".join(others) + "\n")
        said = self._run("-I", "-c", "import partopt; print(partopt.__file__)").stdout.strip()
        if Path(said).resolve() != (self.root / "__init__.py").resolve():
            raise Outdated(f"in the copy `partopt` is {said!r}, not the copy")

    def _run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), *arguments],
            cwd=self.root,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    def failure(self, tests: Sequence[str], **environment: str) -> str:
        """The first of `tests` that fails here and why, in a line; empty where all pass."""
        base = self.root.parent / "pytest"
        ran = self._run(
            *("-m", "pytest", "-x", "-p", "no:cacheprovider", "--timeout", "300"),
            *("--basetemp", str(base), *tests),
            **environment,
        )
        if ran.returncode not in (0, 1):
            raise Outdated(f"{', '.join(tests)} cannot be run:\n{ran.stdout}{ran.stderr}")
        said = [line for line in ran.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return "; ".join(said) or "a test failed" if ran.returncode else ""

    def notices(self, fault: Fault) -> bool:
        """Put the fault in, run its tests, take it out again."""
        path = self.root / fault.file
        text = path.read_text()
        path.write_text(fault.into(text))
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            compiled.unlink()  # of the same second and length it would be taken for the fault's
        try:
            return bool(self.failure(fault.tests, PYTHONDONTWRITEBYTECODE="1"))
        finally:
            path.write_text(text)


def main(words: Sequence[str]) -> int:
    """Name the faults that no test notices; the exit code."""
    wanted = [f for f in faults() if not words or any(w in f"{f.file} {f.what}" for w in words)]
    if not wanted:
        print(f"no fault with {' or '.join(map(repr, words))} in its text")
        return 2
    survivors, problems = [], []
    with tempfile.TemporaryDirectory(prefix="partopt-mutants-") as place:
        free: Queue[Copy] = Queue()
        for i in range(COPIES):
            free.put(Copy(Path(place, str(i))))

        def one(tests: Sequence[str], fault: Fault | None) -> None:
            copy = free.get()
            try:
                if fault is None:
                    if failed := copy.failure(tests):
                        problems.append(f"without any fault: {failed}")
                elif not copy.notices(fault):
                    survivors.append(fault)
                    print(f"SURVIVED  {fault.file}: {fault.what}", flush=True)
                else:
                    print(f"noticed   {fault.file}: {fault.what}", flush=True)
            except (Outdated, subprocess.TimeoutExpired) as error:
                problems.append(str(error))
            finally:
                free.put(copy)

        # First without a fault: a test that fails anyway would notice everything.
        tests = sorted({t for f in wanted for t in f.tests})
        with ThreadPoolExecutor(COPIES) as pool:
            # An empty part would be the whole suite.
            parts = [part for i in range(COPIES) if (part := tests[i::COPIES])]
            list(pool.map(lambda part: one(part, None), parts))
        if not problems:
            with ThreadPoolExecutor(COPIES) as pool:
                list(pool.map(lambda f: one(f.tests, f), wanted))
    for problem in problems:
        print(f"error: {problem}")
    print(f"{len(wanted)} faults, {len(survivors)} survived, {len(problems)} errors")
    return 1 if survivors or problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
