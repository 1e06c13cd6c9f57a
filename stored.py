"""The model that a split config was made of."""

from __future__ import annotations

from .config import SplitConfig
from .errors import ConfigError
from .models import LoadedModel, load_model
from .traceargs import Tracing


def load_stored(
    config: SplitConfig,
    model: str | None = None,
    weights: str | None = None,
    trust_model: bool = False,
) -> LoadedModel:
    """Load the model of `config` with its preprocessing; the weights' hash is not compared.

    Args:
        config: The split config.
        model, weights: In place of the stored ones.
        trust_model: Allow a ``.pt2`` file.

    Raises:
        ConfigError: The weights were a file and none is given.
        WeightsError: Default weights that cannot be had.
    """
    stored, spec = config.model, model or config.model.spec
    if weights is None and model is None:
        if stored.weights.startswith("file: ") and not spec.endswith(".pt2"):
            raise ConfigError(
                f"`weights` is needed: the split config was made with {stored.weights!r}, "
                "give the file with --weights"
            )
        weights = "none" if stored.random_weights else "DEFAULT"
    p = stored.preprocessing
    return load_model(
        spec,
        weights=weights or "DEFAULT",
        strict=True,
        trust_model=trust_model,
        mean=p.mean,
        std=p.std,
        input_size=p.input_size,
        seed=config.seed,
        tracing=Tracing(stored.concrete_args, tuple(stored.leaf_modules)),
    )
