"""The model that a split config was made of."""

from __future__ import annotations

from pathlib import Path

from ..config import SplitConfig
from ..errors import ConfigError, UsageError
from ..graph.traceargs import Tracing
from .load import LoadedModel, load, parse
from .request import ModelRequest


def _same_dictionary(weights: str, stored: str) -> str:
    """The file given, with the dictionary that was taken from a file of this name."""
    name, mark, key = stored.removeprefix("file: ").rpartition("#")
    known = stored.startswith("file: ") and mark and Path(weights).name == name
    return f"{weights}#{key}" if known and Path(weights).is_file() else weights


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
        trust_model: Load a model that runs code of its own: a ``.pt2`` file, or a factory.

    Raises:
        UsageError: The config names a factory, and nobody said to trust it.
        ConfigError: The weights were a file and none is given.
        WeightsError: Default weights that cannot be had.
    """
    if model is None:
        hold_trusted(config.model.spec, trust_model)
    spec = model or config.model.spec
    if weights is None and model is None:
        weights = weights_of(config)
    if weights is not None:
        weights = _same_dictionary(weights, config.model.weights)
    p = config.model.preprocessing
    return load(
        ModelRequest(
            spec=spec,
            weights=weights or "DEFAULT",
            require_weights=True,
            trust_model=trust_model,
            mean=p.mean,
            std=p.std,
            input_size=p.input_size,
            seed=config.seed,
            tracing=Tracing(config.model.concrete_args, tuple(config.model.leaf_modules)),
        )
    )


def hold_trusted(spec: str, trusted: bool) -> None:
    """Raise where loading the model of a split config would run what the config names.

    A split config may be somebody else's, and a factory is imported and called: ``os:abort`` is
    one. Networks of torchvision and timm are looked up in their lists; a ``.pt2`` file has a check
    of its own.

    Raises:
        UsageError: `spec` is a factory that nobody said to trust.
    """
    if parse(spec)[0] == "factory" and not spec.endswith(".pt2") and not trusted:
        raise UsageError(
            f"`split` names the factory {spec!r}, which would be imported and called; if the code "
            "is yours, pass --trust-model"
        )


def weights_of(config: SplitConfig) -> str:
    """The weights that `config` was made with, for a `ModelRequest`.

    Raises:
        ConfigError: They were a file, which a split config does not carry.
    """
    stored = config.model
    if stored.weights.startswith("file: ") and not stored.spec.endswith(".pt2"):
        raise ConfigError(
            f"`weights` is needed: the split config was made with {stored.weights!r}, "
            "give the file with --weights"
        )
    return "none" if stored.random_weights else "DEFAULT"
