"""A profile by ONNX Runtime: what runs the head is what is timed."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from partopt.enclave_runner.lowering.accounting import accounted
from partopt.enclave_runner.probing import marked
from partopt.errors import ExportError, UsageError
from partopt.graph.build import trace
from partopt.profilers.base import Conditions
from partopt.profilers.profile import BY_SHARES, profile, verify


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.b, self.c = nn.Conv2d(16, 32, 3, 2), nn.Conv2d(32, 8, 1)

    def forward(self, x):
        x = torch.relu(self.norm(self.a(x)))
        return self.c(torch.relu(self.b(x))).mean((2, 3))


class Summed(Net):
    def forward(self, x):
        return self.a(x).cumsum(2)


def traced(net: nn.Module):
    return trace(net.eval(), torch.zeros(1, 3, 32, 32))


def test_operators_belong_to_the_heads_that_began_them():
    graph = traced(Net())
    cuts = graph.cuts("all")
    program, marks = marked(graph, cuts, False)
    found = accounted(program, torch.zeros(1, 3, 32, 32), False, marks)
    heads = dict(zip((c.name for c in cuts), found.heads, strict=True))
    assert all(set(a) <= set(b) for a, b in pairwise(found.heads))
    # The first convolution, its norm and its activation are one operator.
    assert heads["a"] == heads["norm"]
    assert len(heads["a"]) < len(heads["b"]) < len(heads["c"])
    shares = found.shares([1.0] * 100)
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1


def test_a_profile_by_onnx_runtime():
    graph = traced(Net())
    cuts = graph.cuts("clean")
    how = Conditions(engine="ort", repetitions=5, warmup=1)
    found = profile(graph, cuts, how)
    assert found.engine == "ort"
    assert BY_SHARES in found.warnings
    assert found.worker is not None
    heads = [c.enclave.ms for c in found.cuts]
    assert heads[0] > 0
    assert heads == sorted(heads)
    assert heads[-1] <= found.full_enclave.ms * 1.001
    assert verify(graph, cuts[1], found.cuts[1], how).measured_ms > 0


def test_auto_falls_back_and_says_by_which_operator():
    graph = traced(Summed())
    cuts = graph.cuts("clean")
    found = profile(graph, cuts, Conditions(engine="auto", repetitions=2, warmup=0))
    assert found.engine == "torch"
    assert any("aten.cumsum.default" in w for w in found.warnings)
    with pytest.raises(ExportError, match=r"aten\.cumsum\.default"):
        profile(graph, cuts, Conditions(engine="ort", repetitions=2, warmup=0))


def test_an_engine_that_there_is_none_of():
    with pytest.raises(UsageError, match="`engine` got 'tvm'"):
        Conditions(engine="tvm")
