"""Models by name, their weights, and how they want their images.

Each way to name a model has a loader; files of weights are read in `weights`, ``.pt2`` files in
`pt2`, and factories are called in `factories`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from ..errors import TraceError, UsageError, WeightsError, first_line, nearest
from ..graph import tracing as tr
from ..graph.build import LayerGraph, by_export, trace
from ..graph.reference import look
from ..graph.torchvision_cpu import models as tv
from ..graph.traceargs import Tracing, leaf_classes
from ..hashing import hash_state
from ..preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, from_torchvision
from . import factories, pt2, trial_run
from . import weights as weights_files
from .request import ModelOptions, ModelRequest

DOWNLOAD_TIMEOUT_S = 20.0
_NO_UNPICKLING = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # read by torch.load at every call
# Their published weights want `transform_input`.
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
_FILES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".onnx", ".h5", ".npz", ".tar", ".pkl")


def short_name(spec: str) -> str:
    """A name fit for a file, of a model as it was asked for."""
    stem = spec.rpartition(":")[2]
    return Path(stem).stem if stem.endswith(".pt2") else stem.replace("/", "_")


@dataclass
class LoadedModel:
    """A model in eval mode with all that a run needs to know of it.

    Attributes:
        spec: The model as it was asked for.
        module: The network (for ``.pt2``: the exported graph module).
        preprocessing: Resize, crop and normalisation.
        weights: What the weights are: ``default:...``, ``random (seed ...)``, or the file's name,
            with ``#`` and the dictionary in it where there was more than one.
        weights_hash: SHA-256 of the state dict and of the other tensors that the network holds.
        warnings: What the user must know, e.g. that the weights are random.
        program: The program, for ``.pt2``.
        tracing: How it is to be traced.
    """

    spec: str
    module: nn.Module
    preprocessing: Preprocessing
    weights: str
    weights_hash: str
    warnings: list[str] = field(default_factory=list)
    program: torch.export.ExportedProgram | None = None
    tracing: Tracing = field(default_factory=Tracing)

    @property
    def arguments(self) -> dict[str, Any]:
        """What ``forward`` is called with besides images."""
        return dict(self.tracing.concrete_args)

    @property
    def random_weights(self) -> bool:
        """Whether the weights are untrained."""
        return self.weights.startswith("random")

    @property
    def short_name(self) -> str:
        """A name fit for a file."""
        return short_name(self.spec)

    def example(self, batch: int = 1) -> torch.Tensor:
        """An input of zeros, shape (batch, 3, H, W)."""
        size = self.preprocessing.input_size
        return torch.zeros(batch, 3, size, size)

    def trace(self) -> LayerGraph:
        """The layer graph at batch size 1 (or the exported program's own)."""
        if self.program is None:
            return trace(
                self.module,
                self.example(),
                leaf_modules=leaf_classes(self.module, self.tracing.leaf_modules),
                concrete_args=self.arguments,
            )
        args, _ = self.program.example_inputs or ((self.example(),), {})
        if len(args) != 1 or not isinstance(args[0], torch.Tensor) or args[0].ndim != 4:
            raise TraceError(
                f"`model` {self.spec} takes {len(args)} inputs; partopt attacks models of one "
                "image tensor of shape (N, 3, H, W)"
            )
        name = Path(self.spec).stem
        try:
            example = (args[0][:1],)
            reference = look(self.module, example)
        except TraceError:
            example = (args[0],)
            reference = look(self.module, example)
        return by_export(tr.Exported(self.program), example, name, reference)


def load_model(spec: str, **options: Unpack[ModelOptions]) -> LoadedModel:
    """Load a model by name.

    Args:
        spec: ``efficientnet_b0`` (= ``torchvision:efficientnet_b0``), ``timm:NAME``,
            ``package.module:factory`` (called without arguments), or a ``.pt2`` file.
        options: Weights, input and tracing: the fields of `ModelRequest`.

    Raises:
        UsageError: A spec, a name or a setting that names nothing.
        WeightsError: Weights that are missing, unsafe or do not fit.
    """
    return load(ModelRequest.of(spec, "load_model", dict(options)))


def load(request: ModelRequest) -> LoadedModel:
    """Load the model that is asked for; raises as `load_model`."""
    spec = request.spec
    if spec.endswith(".pt2"):
        loaded = _load_pt2(request)
    else:
        torch.manual_seed(request.seed)
        family, name = parse(spec)
        loaded = _LOADERS[family](request, name)
    size = loaded.preprocessing.input_size
    wanted = request.input_size or size
    if loaded.program is not None and wanted != size:
        raise UsageError(
            f"`input_size` got {wanted}, but `model` {spec} was exported for {size}x{size}; "
            "export it at the size that you want"
        )
    mean, std = request.normalisation()
    loaded.preprocessing = replace(
        loaded.preprocessing,
        input_size=wanted,
        resize=round(loaded.preprocessing.resize * wanted / size),
        mean=mean or loaded.preprocessing.mean,
        std=std or loaded.preprocessing.std,
        source="given" if mean or std or request.input_size else loaded.preprocessing.source,
    )
    loaded.tracing = request.tracing
    if loaded.program is not None and loaded.tracing != Tracing():
        raise UsageError(
            "`concrete_args` and `leaf_modules` cannot be given with a .pt2 file, which is traced "
            "already"
        )
    leaf_classes(loaded.module, loaded.tracing.leaf_modules)
    if loaded.program is None:
        loaded.module.eval()
        tr.Request((), loaded.arguments).bind(loaded.module, 1)
        beside = trial_run.try_out(spec, loaded.module, wanted, loaded.arguments)
        loaded.weights_hash = hash_state({**beside, **loaded.module.state_dict()})
    for parameter in loaded.module.parameters():
        parameter.requires_grad_(False)
    return loaded


def parse(spec: str) -> tuple[str, str]:
    """The family of a model's name (``torchvision``, ``timm`` or ``factory``), and the rest."""
    prefix, colon, name = spec.partition(":")
    if not colon:
        return "torchvision", spec
    if prefix in ("torchvision", "timm"):
        return prefix, name
    return "factory", spec


def _default_preprocessing(size: int = 224) -> Preprocessing:
    return Preprocessing(size, round(size * 256 / 224), IMAGENET_MEAN, IMAGENET_STD)


def _load_torchvision(request: ModelRequest, name: str) -> LoadedModel:
    spec = request.spec
    known = tv.list_models(module=tv)
    if name not in known:
        close = nearest(name, known, least=0)
        raise UsageError(
            f"`model` got {spec!r}, which torchvision does not have{close}; {_instead(name)}"
        )
    default = tv.get_model_weights(name).DEFAULT

    def trained() -> tuple[nn.Module, str]:
        # torchvision's builder knows what its own checkpoints need (key names, auxiliary heads).
        module: nn.Module = tv.get_model(name, weights=default, progress=False)
        return module, f"default: torchvision {default}"

    def bare() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            extra = {"aux_logits": False, "transform_input": True}
            module: nn.Module = tv.get_model(
                name, weights=None, **(extra if name in _WITH_AUXILIARY_HEADS else {})
            )
            return module

    module, label, notes = _with_weights(request, trained, bare)
    return LoadedModel(
        spec=spec,
        module=module,
        preprocessing=from_torchvision(default.transforms()),
        weights=label,
        weights_hash="",
        warnings=notes,
    )


def _instead(name: str) -> str:
    """What to write for a model that torchvision does not have."""
    path = Path(name)
    if path.suffix in _FILES:
        return "name the architecture, and give a file of its weights with --weights"
    module, dot, attribute = name.rpartition(".")
    if path.suffix == ".py" or "/" in name:
        return "give a factory as package.module:factory, or a .pt2 file"
    if dot and module and attribute.isidentifier():
        return f"a factory of your own is written {module}:{attribute}"
    return "use one of its classification models, timm:NAME, package.module:factory or a .pt2 file"


def _load_timm(request: ModelRequest, name: str) -> LoadedModel:
    spec = request.spec
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise UsageError(
            f"`model` got {spec!r}, but timm is not installed; pip install 'partopt[timm]'"
        ) from error
    if not timm.is_model(name):
        known = timm.list_models()
        close = nearest(name, known, least=0)
        raise UsageError(f"`model` got {spec!r}, which timm does not have{close}")

    def trained() -> tuple[nn.Module, str]:
        try:
            module: nn.Module = timm.create_model(name, pretrained=True)
        except Exception as error:  # the hub's client has many ways to say that it is offline
            raise OSError(first_line(error)) from error
        return module, f"default: timm {name}"

    def bare() -> nn.Module:
        module: nn.Module = timm.create_model(name, pretrained=False)
        return module

    module, label, notes = _with_weights(request, trained, bare)
    config = timm.data.resolve_model_data_config(module)
    size = int(config["input_size"][-1])
    preprocessing = Preprocessing(
        input_size=size,
        resize=round(size / float(config["crop_pct"])),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        source="timm pretrained configuration",
    )
    return LoadedModel(spec, module, preprocessing, label, "", notes)


def _load_factory(request: ModelRequest, name: str) -> LoadedModel:
    spec = request.spec
    made = factories.make(name)
    preprocessing = _default_preprocessing()
    own = getattr(made, "preprocessing", None)
    if isinstance(own, Preprocessing):
        preprocessing = own
    module, label, notes = _with_weights(
        request, lambda: (made, f"as the factory {spec} made them"), lambda: made
    )
    return LoadedModel(spec, module, preprocessing, label, "", notes)


_LOADERS: dict[str, Callable[[ModelRequest, str], LoadedModel]] = {
    "torchvision": _load_torchvision,
    "timm": _load_timm,
    "factory": _load_factory,
}


def _load_pt2(request: ModelRequest) -> LoadedModel:
    spec = request.spec
    if request.weights not in ("DEFAULT", "none"):
        raise UsageError("`weights` cannot be given with a .pt2 file, which carries its own")
    program = pt2.read(spec, request.trust_model)
    return LoadedModel(
        spec=spec,
        module=program.exported.module(check_guards=False),
        preprocessing=_default_preprocessing(program.side),
        weights=f"file: {Path(spec).name}",
        weights_hash=hash_state(program.tensors()),
        warnings=[
            "the .pt2 file carries no preprocessing: ImageNet mean and std are assumed "
            "unless --mean and --std are given"
        ],
        program=program.exported,
    )


def _with_weights(
    request: ModelRequest,
    trained: Callable[[], tuple[nn.Module, str]],
    bare: Callable[[], nn.Module],
) -> tuple[nn.Module, str, list[str]]:
    """The model with the weights asked for, their label, and warnings."""
    weights, label = request.weights, f"random (seed {request.seed})"
    if weights == "none":
        return bare(), label, ["random weights: asked for with --weights none"]
    if weights != "DEFAULT":
        module = bare()
        loaded = weights_files.load(module, weights)
        return module, loaded.label, loaded.notes
    try:
        with _careful_download():
            return *trained(), []
    except OSError as error:
        reason = first_line(error)
        if request.require_weights:
            raise WeightsError(
                f"`weights` got 'DEFAULT', but they are neither in the cache nor can be "
                f"downloaded ({reason}); give a file with --weights"
            ) from error
    except Exception as error:
        raise WeightsError(
            f"`weights` got 'DEFAULT', but the file in the cache cannot be used "
            f"({type(error).__name__}), or does not fit the model; delete it and try again"
        ) from error
    note = (
        f"RANDOM WEIGHTS: the default weights could not be had ({reason}); this result says "
        "nothing about a trained model; give a file with --weights, or --require-weights to fail"
    )
    torch.manual_seed(request.seed)
    return bare(), label, [note]


@contextlib.contextmanager
def _careful_download() -> Iterator[None]:
    """Without unpickling, with a time limit, and without the hub's own prints."""
    sink = io.StringIO()
    timeout = socket.getdefaulttimeout()
    forced = os.environ.get(_NO_UNPICKLING)
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    os.environ[_NO_UNPICKLING] = "1"
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield
    finally:
        socket.setdefaulttimeout(timeout)
        if forced is None:
            del os.environ[_NO_UNPICKLING]
        else:
            os.environ[_NO_UNPICKLING] = forced


__all__ = ["LoadedModel", "load", "load_model", "short_name"]
