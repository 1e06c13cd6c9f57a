"""What the nodes of a graph are called: torchvision's dotted names, a module's own path first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

Call = tuple[str, int]


@dataclass(frozen=True)
class Claim:
    """A node holds what a module returned: its path, which of its calls, and when (a node's age).

    A tensor that is overwritten after `at` is no longer what the module returned.
    """

    path: str
    call: int
    at: int


class Names:
    """Hands out names that are used once.

    The first call of a module has the module's path for its name, and nothing else ever has it. The
    second call is ``path_1``; an operation inside a module is ``path.operation``, and so on, as in
    torchvision, but for numbers that would make the path of another module.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = frozenset(paths)
        self._used: set[str] = set()
        self._next: Counter[str] = Counter()

    def of_module(self, path: str) -> str:
        """The name of one more call of the leaf module at `path`."""
        if path not in self._used:
            self._used.add(path)
            return path
        return self._take(path)

    def of_operation(self, module: str, fx_name: str) -> str:
        """The name of an operation in the module at path `module` ("" is the model)."""
        stem = re.sub(r"_[0-9]+$", "", fx_name)
        return self._take(f"{module}.{stem}" if module else stem)

    def _take(self, base: str) -> str:
        while True:
            number = self._next[base]
            self._next[base] += 1
            name = f"{base}_{number}" if number else base
            if name not in self._paths and name not in self._used:
                self._used.add(name)
                return name
