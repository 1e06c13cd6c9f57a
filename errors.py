"""Every exception that partopt raises on purpose.

    PartoptError
    ├── UsageError (ValueError)     an argument is wrong; exit code 2
    ├── TraceError                  a model cannot be turned into a layer graph
    ├── CutError (ValueError)       a cut does not exist or cannot be split at
    ├── WeightsError                weights are missing, unsafe to read, or of another model
    ├── DataError                   too few usable images, or none
    │   └── PictureError            one picture cannot be read
    ├── ConfigError (ValueError)    a split config is malformed, of another schema, or unsafe
    ├── BackendError                a profiler backend is not available here
    ├── AttackError                 an attacker diverged or could not be scored
    ├── StorageError                a cache, journal or database cannot be read or written
    ├── PlanError                   no plan meets what is asked for
    ├── BlindingError               a value cannot be blinded or a mask cannot be used
    │   └── IntegrityError          an answer from outside the enclave failed its check
    ├── ExportError                 a cut cannot be exported as two programs
    ├── BundleError (ValueError)    a bundle is damaged, tampered with or of another schema
    ├── FrameError (ValueError)     a frame is torn, oversized, truncated or not what it should be
    ├── SessionError                a client's encrypted session is refused or broken
    │   └── AttestationError        the enclave could not prove what it is
    └── ServiceError                a worker is gone, busy or cannot be started

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


class PictureError(DataError):
    """A picture cannot be read: ``code`` is ``bad-image`` or ``too-large``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ConfigError(PartoptError, ValueError):
    """A split config is malformed, of a newer schema, or unsafe to read."""


class BackendError(PartoptError):
    """A backend (enclave or accelerator) is not available on this machine."""


class AttackError(PartoptError):
    """An attacker diverged or gave something that cannot be scored."""


class StorageError(PartoptError):
    """A cache, journal or database cannot be read or written: a full disk, a lock, damage."""


class PlanError(PartoptError):
    """No plan meets the threshold, the accuracy bound and the deadline."""


class BlindingError(PartoptError):
    """A layer or value cannot be blinded, or a mask was used before."""


class IntegrityError(BlindingError):
    """What came back for a blinded layer is not what the layer gives; the request has ended.

    ``layer`` names it.
    """

    def __init__(self, layer: str, message: str) -> None:
        super().__init__(message)
        self.layer = layer


class ExportError(PartoptError):
    """A head or tail cannot be written as a program of plain ATen operators."""


class BundleError(PartoptError, ValueError):
    """A bundle is incomplete, damaged, tampered with, of another schema, or its key is wrong."""


class FrameError(PartoptError, ValueError):
    """A frame from another process is refused.

    ``code`` is one of ``torn``, ``replayed``, ``forged``, ``oversized``, ``truncated``,
    ``malformed`` and ``unexpected``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SessionError(PartoptError):
    """The encrypted session between client and head worker cannot be made or go on."""


class AttestationError(SessionError):
    """The head worker did not prove that it is the expected enclave."""


class ServiceError(PartoptError):
    """A request was not answered: ``code`` says why (``busy``, ``tail-lost``, ``locked``, ...)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of an error's message, or the name of its class where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:most] if lines else type(error).__name__


def nearest(name: str, names: Iterable[str], count: int = 3, least: float = 0.5) -> str:
    """Return a phrase that offers the names closest to `name`, or an empty string.

    Case does not count. `least` in [0, 1] is how alike a name must be to be offered; 0 offers some
    whatever was asked for.

    >>> nearest("ResNet5", ["resnet50", "vgg16"])
    ' (nearest: resnet50)'
    """
    known = {n.casefold(): n for n in names}
    close = difflib.get_close_matches(name.casefold(), list(known), n=count, cutoff=least)
    return f" (nearest: {', '.join(known[n] for n in close)})" if close else ""
