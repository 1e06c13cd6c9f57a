"""Which model is asked for, with which weights and which input, as one record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

from ..arguments.choices import known_names
from ..arguments.numbers import SIZES, whole
from ..arguments.numbers import seed as hold_seed
from ..errors import UsageError
from ..graph.traceargs import Tracing


class ModelOptions(TypedDict, total=False):
    """Fields of a `ModelRequest` besides the spec, as keyword arguments; None is the default."""

    weights: str | None
    require_weights: bool | None
    trust_model: bool | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    input_size: int | None
    tracing: Tracing | None
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """A model as it is asked for.

    Attributes:
        spec: ``efficientnet_b0`` (= ``torchvision:efficientnet_b0``), ``timm:NAME``,
            ``package.module:factory`` (called without arguments), or a ``.pt2`` file.
        weights: ``"DEFAULT"``, ``"none"`` (random), or a file: a state dict or safetensors;
            ``FILE#KEY`` names one dictionary of several in it.
        require_weights: Raise when default weights cannot be had, instead of going on with random
            ones.
        trust_model: Allow a ``.pt2`` file, whose loader may run code.
        mean, std: One value or three each, in place of the model's own normalisation.
        input_size: Height and width in pixels, in place of the model's own.
        tracing: Arguments of ``forward`` to fix and modules to keep whole.
        seed: For random weights.

    Raises:
        UsageError: A value outside its range.
    """

    spec: str
    weights: str = "DEFAULT"
    require_weights: bool = False
    trust_model: bool = False
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    input_size: int | None = None
    tracing: Tracing = field(default_factory=Tracing)
    seed: int = 0

    def __post_init__(self) -> None:
        hold_seed(self.seed)
        whole("input_size", self.input_size, *SIZES)
        self.normalisation()

    @classmethod
    def of(cls, spec: str, whose: str, options: dict[str, Any]) -> ModelRequest:
        """From keyword arguments of the function `whose`.

        Raises:
            UsageError: A name that there is none of, or a value outside its range.
        """
        return cls(spec=spec, **known_names(whose, options, MODEL_NAMES))

    def normalisation(self) -> tuple[Three | None, Three | None]:
        """Mean and std, three values each; None where the model's own is meant."""
        return _three("mean", self.mean), _three("std", self.std)


Three = tuple[float, float, float]
MODEL_NAMES = frozenset(f.name for f in fields(ModelRequest)) - {"spec"}


def _three(name: str, values: Sequence[float] | None) -> Three | None:
    if not values:
        return None
    wrong = len(values) not in (1, 3) or not all(map(math.isfinite, values))
    if wrong or (name == "std" and min(values) <= 0):
        raise UsageError(
            f"`{name}` got {list(values)}; give one finite number or three, std above 0"
        )
    a, b, c = list(values) * (3 // len(values))
    return (float(a), float(b), float(c))
