"""Settings files: ``partopt.toml``, or ``[tool.partopt]`` in ``pyproject.toml``.

    data = "photos"            # defaults for every model below
    ssim = 0.2
    budget = "standard"

    [[models]]
    split = "splits/efficientnet_b0.split.json"
    model = "efficientnet_b0"
    weights = "weights/b0.safetensors"

Paths are relative to the file. Unknown keys are errors that offer the nearest valid name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .arguments.choices import (
    AcceleratorName,
    BudgetName,
    EnclaveName,
    EngineName,
    ProtocolName,
    ScaleName,
)
from .arguments.numbers import MOST_SEED
from .errors import ConfigError, nearest
from .images import ton_iot

MAX_BYTES = 1 << 20
PATHS = ("data", "weights", "split", "profile")
TESTED = ("weights", "split")  # what a change under test brings itself


class Defaults(BaseModel):
    """What a model entry and the top of the file have in common; None leaves it to the command."""

    model_config = ConfigDict(extra="forbid")

    data: str | None = None
    protocol: ProtocolName | None = None
    ssim: float | None = Field(default=None, gt=0, le=1)
    budget: BudgetName | None = None
    scale: ScaleName | None = None
    resolution: int | None = Field(default=None, ge=16)
    attackers: list[str] | None = None
    cuts: str | list[str] | None = None
    max_cuts: int | None = Field(default=None, ge=1)
    depth: int | None = Field(default=None, ge=1)
    tune: int | None = Field(default=None, ge=0)
    worst_share: float | None = Field(default=None, gt=0, le=1)
    worst_retrieval: float | None = Field(default=None, gt=0, le=1)
    adversary_images: int | None = Field(default=None, ge=1)
    trust_stored: bool | None = None
    enclave: EnclaveName | None = None
    accelerator: AcceleratorName | None = None
    engine: EngineName | None = None
    require_weights: bool | None = None
    threads: int | None = Field(default=None, ge=1)
    batch: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=0, le=MOST_SEED)
    latency: bool | None = None
    latency_tolerance: float | None = Field(default=None, gt=0)


class Entry(Defaults):
    """One model."""

    model: str
    split: str | None = None
    profile: str | None = None
    weights: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    input_size: int | None = Field(default=None, ge=1)


class Settings(Defaults):
    """A whole file."""

    models: list[Entry] = Field(default_factory=list)

    def entries(self) -> list[Entry]:
        """The models with the file's defaults filled in."""
        own = {n: getattr(self, n) for n in Defaults.model_fields}
        filled = []
        for entry in self.models:
            missing = {n: v for n, v in own.items() if getattr(entry, n) is None and v is not None}
            filled.append(entry.model_copy(update=missing))
        return filled

    def entry_for(self, model: str) -> Entry:
        """The entry of `model`, or the file's defaults alone."""
        for entry in self.entries():
            if entry.model == model:
                return entry
        own = {n: getattr(self, n) for n in Defaults.model_fields}
        return Entry(model=model, **own)


def discover(folder: Path) -> Path | None:
    """``partopt.toml`` in `folder`, else its ``pyproject.toml`` if that has ``[tool.partopt]``."""
    own = folder / "partopt.toml"
    if own.is_file():
        return own
    project = folder / "pyproject.toml"
    if project.is_file() and project.stat().st_size <= MAX_BYTES:
        try:
            tool = tomllib.loads(project.read_text()).get("tool", {})
        except (tomllib.TOMLDecodeError, UnicodeDecodeError):
            return None
        return project if isinstance(tool, dict) and "partopt" in tool else None
    return None


def read(path: Path, under_test: Path | None = None) -> Settings:
    """Read a settings file; relative paths in it become relative to its folder.

    Args:
        path: The file.
        under_test: Folder of the change under test: `split` and `weights` are relative to it, all
            else to the file's own folder.

    Raises:
        ConfigError: Missing, too large, no TOML, or with an unknown or wrong key.
    """
    if not path.is_file():
        raise ConfigError(f"settings {str(path)!r} do not exist; write a partopt.toml")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"settings {str(path)!r} are larger than {MAX_BYTES} bytes")
    try:
        raw = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"settings {str(path)!r} are no TOML: {str(error)[:120]}") from None
    if path.name == "pyproject.toml":
        tool = raw.get("tool", {})
        raw = tool.get("partopt", {}) if isinstance(tool, dict) else {}
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"settings {str(path)!r} {_problem(error)}") from None
    for place in (settings, *settings.models):
        for name in PATHS:
            value = getattr(place, name, None)
            if value is not None and value not in ("DEFAULT", "none"):
                folder = path.parent if under_test is None or name not in TESTED else under_test
                setattr(place, name, _beside(folder, value))
    return settings


def _beside(folder: Path, value: str) -> str:
    """A path of the file made relative to a folder; the kind of data before it stays."""
    kind = ton_iot.PREFIX if value.startswith(ton_iot.PREFIX) else ""
    return kind + str(folder / value.removeprefix(kind))


def for_find(model: str, given: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    """Arguments of `find`: what is given, else what the settings file says of `model`.

    Args:
        model: The model asked for.
        given: Arguments by name; None where the command line says nothing.
        path: The settings file, or None for the one in the working folder, if any.
    """
    path = path or discover(Path.cwd())
    entry = read(path).entry_for(model) if path is not None else Entry(model=model)
    merged = {n: v if v is not None else getattr(entry, n, None) for n, v in given.items()}
    return {n: v for n, v in merged.items() if v is not None}


def _problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:120]
    if first["type"] == "extra_forbidden" and first["loc"][-1] == "strict":
        return f"have the key `{where}`, which is called `require_weights` now; rename it"
    if first["type"] == "extra_forbidden":
        inside = Entry if first["loc"][0] == "models" else Settings
        close = nearest(str(first["loc"][-1]), inside.model_fields)
        return f"have the unknown key `{where}`{close}; remove it"
    return f"are wrong at `{where}`: {first['msg'].lower()}"
