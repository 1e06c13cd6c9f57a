"""An explicit model of an SGX enclave for hosts without one: native times, scaled.

Nothing here is used unless the user asks with ``--sgx-model``; all that it touches is labelled
"modelled". It is a planning aid, not a measurement: the parameters are the user's.

    enclave_ms = native_ms * slowdown + transitions * transition_us / 1000
                 + paged_mib * paging_ms_per_mib

where paged_mib is what parameters and peak activations of the head exceed the EPC by. Costs of
these three kinds are described by Costan and Devadas, "Intel SGX Explained" (IACR 2016/086), and
measured for inference by Tramer and Boneh, "Slalom" (ICLR 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ..errors import UsageError


@dataclass(frozen=True)
class SgxModel:
    """Parameters of the model.

    Attributes:
        slowdown: Factor on native compute time (1 or more).
        transition_us: Cost of one enclave exit and re-entry, microseconds.
        transitions: Exits per run of the head.
        epc_mib: Protected memory, MiB.
        paging_ms_per_mib: Cost of each MiB that does not fit, milliseconds.
    """

    slowdown: float = 1.5
    transition_us: float = 8.0
    transitions: int = 10
    epc_mib: float = 128.0
    paging_ms_per_mib: float = 1.0

    @classmethod
    def parse(cls, text: str) -> SgxModel:
        """Read ``slowdown=1.5,epc_mib=128,...``; ``default`` takes every default.

        Raises:
            UsageError: Unknown name or a value that is no number above or at its minimum.
        """
        if text == "default":
            return cls()
        known = {f.name for f in fields(cls)}
        values: dict[str, float] = {}
        for item in text.split(","):
            name, equals, value = item.strip().partition("=")
            if name not in known or not equals:
                raise UsageError(
                    f"`sgx-model` got {item!r}; use 'default' or name=value of "
                    f"{', '.join(sorted(known))}, separated by commas"
                )
            try:
                values[name] = float(value)
            except ValueError:
                raise UsageError(f"`sgx-model` got {item!r}; the value must be a number") from None
        wrong = any(not 0 <= v < math.inf for v in values.values())
        if wrong or values.get("slowdown", 1.0) < 1:
            raise UsageError(
                f"`sgx-model` got {text!r}; slowdown is at least 1, the rest 0 or more, all finite"
            )
        if "transitions" in values:
            values["transitions"] = int(values["transitions"])
        return cls(**values)  # type: ignore[arg-type]

    def enclave_ms(self, native_ms: float, head_bytes: int) -> float:
        """Modelled enclave time of a head that takes `native_ms` outside and holds `head_bytes`."""
        over = max(0.0, head_bytes / 2**20 - self.epc_mib)
        transitions = self.transitions * self.transition_us / 1e3
        return native_ms * self.slowdown + transitions + over * self.paging_ms_per_mib

    def text(self) -> str:
        """All parameters, as `parse` reads them."""
        return ",".join(f"{f.name}={getattr(self, f.name):g}" for f in fields(self))

    def label(self, of: str = "native") -> str:
        """How results name it; `of` is the backend whose times are scaled."""
        return f"sgx-model({self.text().replace(',', ', ')}) of {of}"
