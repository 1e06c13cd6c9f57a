"""Under which conditions a profile is taken."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How times are measured, alike on both sides of a cut.

    Attributes:
        enclave: Backend of the head, already resolved: a key of `backends.ENCLAVES`.
        accelerator: Backend of the tail, already resolved: a key of `backends.ACCELERATORS`.
        threads: Compute threads.
        batch: Images a run.
        repetitions: Kept runs of a profile; medians are reported.
        seed: For the input's values.

    Raises:
        UsageError: A number below 1.
    """

    enclave: str = "native"
    accelerator: str = "cpu"
    threads: int = 1
    batch: int = 1
    repetitions: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("threads", "batch", "repetitions"):
            if getattr(self, name) < 1:
                raise UsageError(f"`{name}` got {getattr(self, name)}; use 1 or more")
