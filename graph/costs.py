"""Shapes, bytes and FLOPs of every node, from one run on fake tensors that allocates nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class NodeCosts:
    """What one node gave and did.

    Attributes:
        value: A fake tensor or a plain value.
        flops: As ``torch.utils.flop_counter`` counts them.
        storages: Bytes of every storage that its tensors lie in, by address.
        wrote: The nodes it reads whose tensors it overwrote.
    """

    value: Any
    flops: int
    storages: dict[int, int]
    wrote: tuple[str, ...] = ()


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.counter = counter
        self.costs: dict[str, NodeCosts] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = self.counter.get_total_flops()
        versions = {m.name: self._version(m) for m in n.all_input_nodes}
        value = super().run_node(n)
        wrote = tuple(m.name for m in n.all_input_nodes if versions[m.name] != self._version(m))
        flops = self.counter.get_total_flops() - before
        storages: dict[int, int] = {}
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
                storage = leaf.untyped_storage()
                storages[storage._cdata] = int(storage.nbytes())
        self.costs[n.name] = NodeCosts(value, flops, storages, wrote)
        return value

    def _version(self, n: fx.Node) -> tuple[int, ...]:
        """Grows with every operation that writes to a tensor of `n`."""
        found = pytree.tree_leaves(self.env[n])
        return tuple(
            t._version for t in found if isinstance(t, torch.Tensor) and not t.is_inference()
        )


@contextmanager
def _no_fast_attention() -> Iterator[None]:
    """The fused attention kernel hides its matrix products from the counter."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def measure(module: fx.GraphModule, inputs: tuple[torch.Tensor, ...]) -> dict[str, NodeCosts]:
    """Run `module` once on fake copies of `inputs`; return what each fx node did, by its name.

    What fake tensors cannot do (operators without a fake kernel, branches on data inside a leaf
    module) makes it fall back to a real run.
    """
    with torch.no_grad(), _no_fast_attention():
        try:
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            with mode:
                fakes = tuple(mode.from_tensor(t) for t in inputs)
                return _run(module, fakes)
        except Exception:
            return _run(module, tuple(t.clone() for t in inputs))


def _run(module: fx.GraphModule, inputs: tuple[torch.Tensor, ...]) -> dict[str, NodeCosts]:
    counter = FlopCounterMode(display=False)
    recorder = _Recorder(module, counter)
    with counter:
        recorder.run(*inputs)
    return recorder.costs
