"""Networks that a function of the user's makes: ``package.module:factory``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UsageError, nearest
from . import users_code

_HOW = "write a function that takes nothing and returns a torch.nn.Module"
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


def make(spec: str) -> nn.Module:
    """Import the factory `spec` names, call it, and take its network out of any wrapper.

    Raises:
        UsageError: It cannot be imported or called, or returns no network that partopt can run.
    """
    with users_code.running():
        factory = _found(spec)
        _takes_nothing(spec, factory)
        try:
            made = factory()
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"`model` got {spec!r}, whose factory raised {users_code.told(error)}"
            ) from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"`model` got {spec!r}, which returned {_kind(made)}; {_HOW}")
    module = unwrapped(made)
    _plain(spec, module)
    return module.to("cpu")


def _found(spec: str) -> Callable[[], Any]:
    name, _, attribute = spec.partition(":")
    if name.endswith(".py") or "/" in name:
        raise UsageError(f"`model` got {spec!r}, which names a file; {_as_module(name, attribute)}")
    if not name or not attribute:
        raise UsageError(f"`model` got {spec!r}; give both sides of the colon: module:factory")
    if attribute.endswith(")"):
        bare = f"{name}:{attribute.partition('(')[0]}"
        raise UsageError(
            f"`model` got {spec!r}; write it without parentheses, {bare}: it is called for you"
        )
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"`model` got {spec!r}, which cannot be imported: {users_code.told(error)}; "
            + _after_import(name, error)
        ) from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            file = getattr(module, "__file__", None) or "built in"
            raise UsageError(
                f"`model` got {spec!r}, which cannot be imported: {name} ({file}) has no "
                f"{attribute!r}{nearest(attribute, names)}"
            )
        found = getattr(found, part)
    if isinstance(found, nn.Module) or not callable(found):
        raise UsageError(f"`model` got {spec!r}, which is {_kind(found)}; {_HOW}")
    return found  # type: ignore[no-any-return]


def _after_import(name: str, error: BaseException) -> str:
    """What to do about a module that cannot be imported."""
    if isinstance(error, ModuleNotFoundError) and name.startswith(error.name or "\0"):
        return "run from the folder that holds it, or install its package"
    if isinstance(error, ImportError):
        return "install what it imports"
    if isinstance(error, SystemExit):
        return 'keep what runs as a script below if __name__ == "__main__"'
    return "mend it so that python -c 'import " + name + "' works"


def _as_module(name: str, attribute: str) -> str:
    """What to write in place of a file's name."""
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    parts = [p for p in path.with_suffix("").parts if p != "."]
    asked = attribute.partition("(")[0] or "FACTORY"
    if path.is_absolute() or ".." in parts:
        return f"run in {path.parent} with {path.stem}:{asked}"
    return f"name the module instead: {'.'.join(parts)}:{asked}"


def _takes_nothing(spec: str, factory: Callable[..., Any]) -> None:
    try:
        wanted = [
            p.name
            for p in inspect.signature(factory).parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
    except (TypeError, ValueError):  # some built-in callables have no signature
        return
    if wanted:
        raise UsageError(
            f"`model` got {spec!r}, whose factory wants the arguments {', '.join(wanted)}; {_HOW}"
        )


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__} instead of a network"
    if isinstance(value, nn.Module):
        return f"a network ({type(value).__name__}) and no function"
    return type(value).__name__


def unwrapped(module: nn.Module) -> nn.Module:
    """The network without compile, DataParallel and averaging wrappers, inside it too."""
    inner = _inner(module)
    while inner is not module:
        module, inner = inner, _inner(inner)
    for owner in list(module.modules()):
        for name, child in list(owner._modules.items()):
            if child is not None and _inner(child) is not child:
                owner._modules[name] = unwrapped(child)
    return module


def _inner(module: nn.Module) -> nn.Module:
    wrapper = type(module).__name__
    held: Any = module
    if wrapper == "OptimizedModule":
        held = module._modules.get("_orig_mod")
    elif isinstance(
        module,
        (
            nn.DataParallel,
            nn.parallel.DistributedDataParallel,
            torch.optim.swa_utils.AveragedModel,
        ),
    ):
        held = module._modules.get("module")
    return held if isinstance(held, nn.Module) else module


def _plain(spec: str, module: nn.Module) -> None:
    """Raise unless all of the network is float32 with values, in eager modules."""

    def refuse(what: str, do: str) -> UsageError:
        return UsageError(f"`model` got {spec!r}, {what}; {do}")

    for path, part in module.named_modules():
        where = f" (`{path}`)" if path else ""
        if isinstance(part, torch.jit.ScriptModule):
            raise refuse(f"which is scripted{where}", "return the Python module it was made of")
        if type(part).__module__.startswith(_QUANTISED):
            raise refuse(f"which is quantised{where}", "return the float32 network")
        if isinstance(part, _BATCH_NORMS) and part.running_mean is None:
            raise refuse(
                f"whose batch norm `{path}` keeps no running statistics, so that an answer depends "
                "on the other images of its batch",
                "use track_running_stats=True or another norm",
            )
    held = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in held:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if nn.parameter.is_lazy(tensor):
            raise refuse(f"whose `{name}` has no shape yet", "run it once in the factory")
        if tensor.is_meta:
            raise refuse(
                f"whose `{name}` is on the meta device, without values",
                "make it on the CPU, or fill it with to_empty and load_state_dict",
            )
        if tensor.is_quantized or type(tensor.data) is not torch.Tensor:
            kind = dtype if tensor.is_quantized else type(tensor.data).__name__
            raise refuse(f"whose `{name}` is quantised ({kind})", "return the float32 network")
        if tensor.is_floating_point() and tensor.dtype is not torch.float32:
            raise refuse(
                f"whose `{name}` is {dtype}", "partopt runs float32: return network.float()"
            )
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise refuse(
                f"whose state `{name}` is {type(value).__name__} and no tensor",
                "return a network of plain tensors",
            )
