"""One run of a freshly loaded network on one image: whether it takes what partopt will send it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import UsageError
from . import users_code

_OTHER_SIDES = (224, 256, 384, 64)


def try_out(
    spec: str, module: nn.Module, side: int, arguments: Mapping[str, Any] | None = None
) -> dict[str, torch.Tensor]:
    """Run the network in eval mode on noise of shape (1, 3, side, side), float32.

    Args:
        spec: The model as it was asked for.
        module: The network.
        side: Height and width of its input, in pixels.
        arguments: What else its ``forward`` is called with, by name.

    Returns:
        The tensors beside its state dict that the run left as they were, by name: buffers that
        are not saved and plain attributes. They are as much part of the network as its weights.

    Raises:
        UsageError: It wants other inputs, raises, or answers with no tensor.
    """
    arguments = arguments or {}
    _takes_one(spec, module, arguments)
    before = {n: t.clone() for n, t in _constants(module)}
    failed = _failure(module, (1, 3, side, side), arguments)
    if failed is not None:
        raise UsageError(
            f"`model` got {spec!r}, which fails on one float32 image of shape "
            f"(1, 3, {side}, {side}): {failed}{_instead(module, side, arguments)}"
        )
    return {n: t for n, t in _constants(module) if n in before and torch.equal(t, before[n])}


def _takes_one(spec: str, module: nn.Module, given: Collection[str]) -> None:
    try:
        asked = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return
    wanted = [p for p in asked if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    wanted = [p for p in wanted if p.name not in given]
    names = [p.name for p in wanted if p.kind is not p.VAR_POSITIONAL]
    by_name = [p.name for p in wanted if p.kind is p.KEYWORD_ONLY]
    if len(names) > 1 or by_name or not asked:
        raise UsageError(
            f"`model` got {spec!r}, whose forward wants {', '.join(names) or 'nothing'}; partopt "
            "attacks networks of one positional input, an image: wrap it in one, or fix the others "
            "with --concrete-args"
        )


def _failure(module: nn.Module, shape: tuple[int, ...], arguments: Mapping[str, Any]) -> str | None:
    """What went wrong in one run, or None."""
    try:
        noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        with contextlib.ExitStack() as stack:
            stack.enter_context(users_code.running())
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(torch.no_grad())
            for part in module.modules():
                if isinstance(part, nn.Conv3d):
                    stack.callback(part.register_forward_pre_hook(_no_volume).remove)
            answer = module(noise, **arguments)
    except (Exception, SystemExit) as error:
        return users_code.told(error)
    leaves = pytree.tree_leaves(answer)
    plain = (int, float, str, bool, type(None))
    if not leaves or all(isinstance(leaf, plain) for leaf in leaves):
        return f"it answers with {type(answer).__name__} instead of a tensor"
    return None


def _no_volume(part: nn.Module, args: tuple[Any, ...]) -> None:
    """A 3-d convolution takes a batch of images for one volume without a batch."""
    if args and isinstance(args[0], torch.Tensor) and args[0].ndim == 4:
        raise ValueError("it takes volumes, (N, C, D, H, W)")


def _instead(module: nn.Module, side: int, arguments: Mapping[str, Any]) -> str:
    """Which other input the network would take, as a phrase that ends the error."""
    for other in _OTHER_SIDES:
        if other != side and _failure(module, (1, 3, other, other), arguments) is None:
            return f"; it runs at {other}x{other}: use --input-size {other}"
    for channels in (1, 4, 2):
        for size in (side, 224):
            if _failure(module, (1, channels, size, size), arguments) is None:
                return (
                    f"; it takes {channels} channel{'s' * (channels > 1)}, and partopt sends three "
                    "(RGB): put a layer before it that converts them"
                )
    return "; partopt attacks networks of one RGB image, (N, 3, S, S)"


def _constants(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    saved = set(module.state_dict())
    for path, part in module.named_modules():
        before = f"{path}." if path else ""
        for name, value in part._buffers.items():
            if value is not None and before + name not in saved:
                yield before + name, value
        for name, value in vars(part).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                yield from _tensors(f"{before}{name}", value)


def _tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        if value.layout is torch.strided and not value.is_meta and not value.is_quantized:
            yield name, value.detach()
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from _tensors(f"{name}.{i}", inner)
    elif type(value) is dict:
        for key, inner in value.items():
            yield from _tensors(f"{name}.{key}", inner)
