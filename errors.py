"""Every exception that partopt raises on purpose.

    PartoptError
    ├── UsageError (ValueError)     an argument is wrong; exit code 2
    ├── TraceError                  a model cannot be turned into a layer graph
    ├── CutError (ValueError)       a cut does not exist or cannot be split at
    ├── WeightsError                weights are missing, unsafe to read, or of another model
    ├── DataError                   too few usable images, or none
    ├── ConfigError (ValueError)    a split config is malformed, of another schema, or unsafe
    ├── BackendError                a profiler backend is not available here
    └── AttackError                 an attacker diverged or could not be scored

Messages are one sentence: the argument, what it got, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PartoptError(Exception):
    """Root of partopt's exceptions. The command line exits with code 1 on it."""

    exit_code = 1


class UsageError(PartoptError, ValueError):
    """An argument has a value that cannot be used."""

    exit_code = 2


class TraceError(PartoptError):
    """Neither ``torch.fx`` nor ``torch.export`` can trace the model."""


class CutError(PartoptError, ValueError):
    """A named cut does not exist, or the graph cannot be parted there."""

    exit_code = 2


class WeightsError(PartoptError):
    """Weights are missing, unsafe to read, or belong to another model."""


class DataError(PartoptError):
    """The images cannot be used: missing, unreadable or too few."""


class ConfigError(PartoptError, ValueError):
    """A split config is malformed, of a newer schema, or unsafe to read."""


class BackendError(PartoptError):
    """A backend (enclave or accelerator) is not available on this machine."""


class AttackError(PartoptError):
    """An attacker diverged or gave something that cannot be scored."""


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """Return a phrase that offers the names closest to `name`, or an empty string.

    >>> nearest("resnet5", ["resnet50", "vgg16"])
    ' (nearest: resnet50)'
    """
    close = difflib.get_close_matches(name, list(names), n=count, cutoff=0.5)
    return f" (nearest: {', '.join(close)})" if close else ""
