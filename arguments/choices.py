"""The closed sets that options, settings files and requests choose from, and who holds a value."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

from ..errors import UsageError, nearest

ProtocolName = Literal["strict", "paper"]
ScaleName = Literal["corrected", "raw"]
BudgetName = Literal["quick", "standard", "full"]
KindOfCuts = Literal["clean", "all", "stage", "paper"]
EnclaveName = Literal["auto", "gramine-sgx", "gramine-direct", "native"]
AcceleratorName = Literal["auto", "cuda", "cpu"]
TransportName = Literal["shm", "tcp", "file"]
EngineName = Literal["torch", "ort", "auto"]
SealName = Literal["aes-256-gcm", "gramine"]
ServiceName = Literal["head", "tail"]
ReportFormat = Literal["html", "md", "svg", "png", "csv"]
ChartName = Literal["leakage", "latency", "front", "graph"]


def one_of(name: str, value: str | None, allowed: Any) -> None:
    """Hold a word against the `Literal` that it is to be of; None passes.

    Raises:
        UsageError: It is none of them.
    """
    words = get_args(allowed)
    if value is not None and value not in words:
        listed = ", ".join(map(repr, words[:-1])) + f" or {words[-1]!r}"
        raise UsageError(f"`{name}` got {value!r}; use {listed}")


def known_names(whose: str, given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Hold the names of keyword arguments against those that there are; drop what is None.

    Args:
        whose: The function that was called, for the message.
        given: Arguments by name; None says nothing, and leaves the default.
        known: The names that `whose` takes.

    Raises:
        UsageError: A name that `whose` does not take, with the nearest ones.
    """
    for name in given:
        if name == "strict" and "require_weights" in known:
            raise UsageError("`strict` is called `require_weights` now; give that instead")
        if name not in known:
            raise UsageError(
                f"`{name}` is no argument of {whose}{nearest(name, known)}; remove or rename it"
            )
    return {name: value for name, value in given.items() if value is not None}
