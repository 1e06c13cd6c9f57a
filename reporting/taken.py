"""On which machine times were taken, and when; what is said where that is no deployment's."""

from __future__ import annotations

from ..config import Machine, SplitConfig, Taken
from ..printable import printable


def machine(m: Machine) -> str:
    """A machine in a phrase."""
    memory = "" if m.memory_bytes is None else f", {m.memory_bytes / 2**30:.0f} GiB"
    enclave = "SGX" if m.sgx else "no SGX"
    gramine = f", Gramine {m.gramine.removeprefix('Gramine ')}" if m.gramine else ""
    return printable(
        f"{m.name} ({m.cpu}, {m.cores} core(s){memory}, {m.gpu or 'no GPU'}, {enclave}{gramine}, "
        f"torch {m.torch})"
    )


def taken(origin: Taken | None) -> str:
    """Where and when times were taken, in a sentence without its full stop."""
    if origin is None:
        return "an older partopt did not say on which machine or when times were taken"
    source = "in this run" if origin.profile is None else f"profile {origin.profile[:12]}"
    return f"times were taken on {machine(origin.machine)} at {origin.at}, {source}"


def void(config: SplitConfig) -> str:
    """Why times that compare nothing do so, and how to get others, as a clause."""
    if config.taken is not None and config.taken.profile is not None:
        whose = f"times of {printable(config.taken.machine.name)}, without enclave and GPU,"
    else:
        whose = "times of this machine"
    return (
        f"{whose} say nothing of a deployment: run `partopt profile` on its machine, and find with "
        "--profile"
    )
