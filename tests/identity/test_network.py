"""The identity of a network: whatever can change a feature map changes it, nothing else does."""

from __future__ import annotations

import contextlib
import functools
import io
import operator
import runpy
import subprocess
import sys
import textwrap
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from partopt.attackers.features import FeatureStore
from partopt.graph.build import LayerGraph, trace
from partopt.identity import sources
from partopt.identity.network import graph_hash, network_hash, of_this_scheme
from partopt.images.load import ImageSet, Split
from partopt.preprocessing import Preprocessing

IMAGES = ImageSet(np.zeros((12, 3, 16, 16), np.uint8), Split(8, 2, 2), "test", "digest")
P = Preprocessing(16, 16, (0.5,) * 3, (0.5,) * 3)


class Layers(nn.Module):
    """One layer between convolutions; a head of its own after it."""

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, 1, 1)
        self.layer = layer()
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.last(self.layer(self.first(x)))


class Calls(nn.Module):
    """The same with a function in place of a layer."""

    def __init__(self, call: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, 1, 1)
        self.call = call

    def forward(self, x):
        return self.call(self.first(x))


def traced(model: nn.Module, **kwargs) -> LayerGraph:
    return trace(model.eval(), torch.zeros(2, 3, 16, 16), **kwargs)


def hashes(graph: LayerGraph) -> tuple[str, str, str]:
    store = FeatureStore("/nowhere", graph, P, IMAGES, "the same weights")
    return graph_hash(graph), network_hash(graph), store.key


# A layer as it stands, and with one setting changed each time.
LAYERS = {
    nn.AvgPool2d: (
        {"kernel_size": 3, "stride": 1, "padding": 1},
        {"kernel_size": 5, "padding": 2},
        {"stride": 2},
        {"padding": 0},
        {"ceil_mode": True},
        {"count_include_pad": False},
        {"divisor_override": 3},
    ),
    nn.MaxPool2d: (
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 2},
        {"stride": 1},
        {"padding": 0},
        {"dilation": 2},
        {"ceil_mode": True},
    ),
    nn.LPPool2d: (
        {"norm_type": 2.0, "kernel_size": 2},
        {"norm_type": 3.0},
        {"kernel_size": 3},
        {"stride": 1},
        {"ceil_mode": True},
    ),
    nn.Conv2d: (
        {
            "in_channels": 8,
            "out_channels": 8,
            "kernel_size": 3,
            "stride": 1,
            "padding": 2,
            "dilation": 2,
        },
        {"stride": 2},
        {"padding": 1},
        {"dilation": 1},
        {"padding_mode": "reflect"},
        {"groups": 2},
        {"groups": 8},
        {"kernel_size": 1},
        {"bias": False},
    ),
    nn.ConvTranspose2d: (
        {"in_channels": 8, "out_channels": 8, "kernel_size": 3, "stride": 2},
        {"stride": 1},
        {"padding": 1},
        {"output_padding": 1},
        {"dilation": 2},
        {"groups": 4},
    ),
    nn.BatchNorm2d: (
        {"num_features": 8},
        {"eps": 1e-3},
        {"momentum": 0.2},
        {"affine": False},
        {"track_running_stats": False},
    ),
    nn.GroupNorm: ({"num_groups": 2, "num_channels": 8}, {"num_groups": 4}, {"eps": 1e-3}),
    nn.InstanceNorm2d: ({"num_features": 8}, {"eps": 1e-3}, {"track_running_stats": True}),
    nn.LayerNorm: (
        {"normalized_shape": [8, 16, 16]},
        {"normalized_shape": [16, 16]},
        {"normalized_shape": [16]},
        {"eps": 1e-3},
        {"elementwise_affine": False},
    ),
    nn.LocalResponseNorm: (
        {"size": 3},
        {"size": 5},
        {"alpha": 1e-3},
        {"beta": 0.5},
        {"k": 2.0},
    ),
    nn.LeakyReLU: ({"negative_slope": 0.01}, {"negative_slope": 0.1}),
    nn.ELU: ({"alpha": 1.0}, {"alpha": 0.5}),
    nn.Hardtanh: ({}, {"min_val": -2.0}, {"max_val": 2.0}),
    nn.Threshold: ({"threshold": 0.0, "value": 0.0}, {"threshold": 0.1}, {"value": 0.5}),
    nn.Softplus: ({}, {"beta": 2.0}, {"threshold": 10.0}),
    nn.GELU: ({}, {"approximate": "tanh"}),
    nn.Softmax: ({"dim": 1}, {"dim": 2}),
    nn.Dropout: ({"p": 0.5}, {"p": 0.1}),
    nn.PReLU: ({}, {"num_parameters": 8}),
    nn.AdaptiveAvgPool2d: ({"output_size": 4}, {"output_size": 8}, {"output_size": (4, 8)}),
    nn.Upsample: (
        {"scale_factor": 2.0, "mode": "bilinear"},
        {"scale_factor": 3.0},
        {"mode": "nearest"},
        {"mode": "bicubic"},
        {"align_corners": True},
    ),
    nn.ReflectionPad2d: ({"padding": 1}, {"padding": 2}, {"padding": (1, 2, 1, 2)}),
    nn.ConstantPad2d: ({"padding": 1, "value": 0.0}, {"value": 1.0}),
    nn.PixelShuffle: ({"upscale_factor": 1}, {"upscale_factor": 2}),
    nn.ChannelShuffle: ({"groups": 2}, {"groups": 4}),
}
CASES = [
    pytest.param(
        kind, base, change, id=f"{kind.__name__}-{'-'.join(f'{k}={v}' for k, v in change.items())}"
    )
    for kind, (base, *changes) in LAYERS.items()
    for change in changes
]


@functools.cache
def of_layer(kind: type[nn.Module], settings: tuple) -> tuple[str, str, str]:
    torch.manual_seed(0)
    channels = {nn.PixelShuffle: 4}.get(kind, 8)

    class Model(Layers):
        def forward(self, x):
            x = self.layer(self.first(x))
            return x.flatten(1)[:, :channels]

    return hashes(traced(Model(lambda: kind(**dict(settings)))))


@pytest.mark.parametrize(("kind", "base", "change"), CASES)
def test_every_setting_of_a_layer_counts(kind, base, change):
    def frozen(settings):
        return tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in settings.items())

    before, after = of_layer(kind, frozen(base)), of_layer(kind, frozen({**base, **change}))
    assert before == of_layer.__wrapped__(kind, frozen(base)), "a second one of the same"
    for a, b in zip(before, after, strict=True):
        assert a != b


class Scale(nn.Module):
    """A leaf of the user's, with settings of every form."""

    def __init__(self, **settings) -> None:
        super().__init__()
        for name, value in settings.items():
            setattr(self, name, value)

    def forward(self, x):
        return x * 2


class Scale3(Scale):
    def forward(self, x):
        return x * 3


class Setting:
    def __init__(self, inner) -> None:
        self.inner = inner


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner) -> None:
        self.inner = inner


def doubled(x, by=2.0):
    return x * by


def adding(constant):
    return lambda x: x + constant


SETTINGS = [
    (1, 2),
    (1, 1.0),
    (0.0, -0.0),
    (True, 1),
    (None, 0),
    ("a", "b"),
    (1 + 2j, 1 + 3j),
    (b"a", b"b"),
    ((1, 2), (1, 3)),
    ((1, 2), [1, 2]),
    ([1, [2, {"a": 3}]], [1, [2, {"a": 4}]]),
    ({1, 2}, {1, 3}),
    ({"a": 1}, {"b": 1}),
    (slice(1, 2), slice(1, 3)),
    (range(3), range(4)),
    (torch.float32, torch.float16),
    (torch.zeros(3), torch.ones(3)),
    (torch.zeros(3), torch.zeros(4)),
    (torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
    (np.zeros(3), np.ones(3)),
    (np.float32(1), np.float32(2)),
    (Setting(1), Setting(2)),
    (Setting([Setting(1)]), Setting([Setting(2)])),
    (Slotted(1), Slotted(2)),
    (F.relu, F.relu6),
    (F.max_pool1d, F.max_pool2d),
    (torch.relu, torch.tanh),
    (operator.add, operator.mul),
    (lambda x: x + 1, lambda x: x + 2),
    (lambda x: x + 1, lambda x: x - 1),
    (adding(1), adding(2)),
    (adding(Setting(1)), adding(Setting(2))),
    (
        functools.partial(F.leaky_relu, negative_slope=0.1),
        functools.partial(F.leaky_relu, negative_slope=0.2),
    ),
    (functools.partial(doubled, by=1), functools.partial(doubled, by=2)),
    (Setting(1).__init__, Setting(2).__init__),
    (nn.ReLU, nn.ReLU6),
    (torch.nn.ReLU(), torch.nn.ReLU6()),
    (nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Sequential(nn.Tanh(), nn.ReLU())),
    (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)),
    (np.random.default_rng(1), np.random.default_rng(2)),
    ({"f": F.relu, "g": F.tanh}, {"g": F.tanh, "f": F.relu}),
    (torch.tensor(1.0).bfloat16(), torch.tensor(2.0).bfloat16()),
]


# No addresses in names: two workers of the suite must find the same tests.
@pytest.mark.parametrize("pair", SETTINGS, ids=range(len(SETTINGS)))
def test_every_attribute_of_a_leaf_of_the_users_counts(pair):
    a, b = (hashes(traced(Layers(lambda v=v: Scale(k=v)), leaf_modules=[Scale])) for v in pair)
    assert all(x != y for x, y in zip(a, b, strict=True))


def test_the_code_of_a_leaf_of_the_users_counts_and_hooks_do():
    made = [hashes(traced(Layers(kind), leaf_modules=[Scale, Scale3])) for kind in (Scale, Scale3)]
    hooked = Layers(Scale)
    hooked.layer.register_forward_hook(lambda module, given, out: out * 0)
    made.append(hashes(traced(hooked, leaf_modules=[Scale])))
    assert len({m[0] for m in made}) == len({m[2] for m in made}) == 3


CALLS = {
    "slope": (lambda x: F.leaky_relu(x, 0.1), lambda x: F.leaky_relu(x, 0.2)),
    "constant": (lambda x: x * 0.5, lambda x: x * 0.25),
    "sign": (lambda x: x * 0.0, lambda x: x * -0.0),
    "order": (lambda x: 1 - x, lambda x: x - 1),
    "operator": (lambda x: x + 0.5, lambda x: x * 0.5),
    "integer": (lambda x: x * 2, lambda x: x * 2.0),
    "mode": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    ),
    "corners": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
    ),
    "kernel": (lambda x: F.avg_pool2d(x, 3, 1, 1), lambda x: F.avg_pool2d(x, 5, 1, 2)),
    "pool": (lambda x: F.max_pool2d(x, 3, 1, 1), lambda x: F.avg_pool2d(x, 3, 1, 1)),
    "method": (lambda x: x.clamp(0, 1), lambda x: x.clamp(0, 2)),
    "keyword": (lambda x: x.clamp(min=0.1), lambda x: x.clamp(max=0.1)),
    "dimension": (lambda x: torch.roll(x, 1, 2), lambda x: torch.roll(x, 1, 3)),
    "slice": (lambda x: x[:, :4], lambda x: x[:, 4:]),
    "index": (lambda x: x[:, [0, 1]], lambda x: x[:, [0, 2]]),
    "dtype": (lambda x: x.to(torch.float64), lambda x: x.to(torch.float16)),
    "eps": (lambda x: F.layer_norm(x, (16,), eps=1e-5), lambda x: F.layer_norm(x, (16,), eps=1e-3)),
    "padding": (lambda x: F.pad(x, (1,) * 4), lambda x: F.pad(x, (1,) * 4, mode="reflect")),
    "dropout": (lambda x: F.dropout(x, 0.1, False), lambda x: F.dropout(x, 0.2, False)),
    "tensor": (lambda x: x * torch.tensor(0.5), lambda x: x * torch.tensor(0.25)),
    "wiring": (lambda x: x.relu() - x.tanh(), lambda x: x.tanh() - x.relu()),
}


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
def test_every_argument_of_a_call_counts(calls):
    a, b = (hashes(traced(Calls(call))) for call in calls)
    assert all(x != y for x, y in zip(a, b, strict=True))
    assert a == hashes(traced(Calls(calls[0])))


def module_of(source: str, name: str) -> ModuleType:
    """A module of the user's, as importing a file would make it."""
    module = ModuleType(name)
    exec(compile(textwrap.dedent(source), f"/{name}.py", "exec"), module.__dict__)
    return module


OWN = """
import torch
from torch import fx
K = {k}
class Held:
    value = {held}
def inner(x):
    return x * K
def mine(x, by={by}):
    return inner(x) + by + Held.value
"""


def of_function(function) -> str:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(function, (x,)))

    class Root(nn.Module):
        pass

    module = fx.GraphModule(Root(), graph)
    from partopt.graph.build import build
    from partopt.graph.tracing import Traced

    traced = Traced(module, {}, "torch.fx")
    return graph_hash(build(traced, (torch.zeros(1, 3, 4, 4),), "Root"))


@pytest.mark.parametrize("change", [{"k": 3}, {"held": 3}, {"by": 3}])
def test_functions_of_the_users_count_with_what_they_read(change):
    settings = {"k": 2, "held": 2, "by": 2}
    made = [
        of_function(module_of(OWN.format(**s), "usermodule").mine)
        for s in (settings, settings, {**settings, **change})
    ]
    assert made[0] == made[1] != made[2]


class Tensors(nn.Module):
    """Parameters, buffers of both kinds and a constant, all read in `forward`."""

    def __init__(self, change: str = "") -> None:
        super().__init__()

        def value(name: str) -> torch.Tensor:
            return torch.full((1, 3, 1, 1), 2.0 if name == change else 1.0)

        self.weight = nn.Parameter(value("weight"))
        self.register_buffer("kept", value("kept"))
        self.register_buffer("passing", value("passing"), persistent=False)
        self.plain = value("plain")
        self.norm = nn.BatchNorm2d(3)
        if change == "statistics":
            self.norm.running_mean += 1

    def forward(self, x):
        return self.norm((x * self.weight + self.kept) * self.passing - self.plain)


@pytest.mark.parametrize("source", ["torch.fx", "torch.export"])
@pytest.mark.parametrize("change", ["weight", "kept", "passing", "plain", "statistics"])
def test_every_tensor_counts_and_the_graph_hash_leaves_the_weights_out(change, source, monkeypatch):
    if source == "torch.export":
        from partopt.errors import TraceError
        from partopt.graph import tracing

        def refuse(*args):
            raise TraceError("no")

        monkeypatch.setattr(tracing, "symbolic", refuse)
    before, after = traced(Tensors()), traced(Tensors(change))
    assert before.source == source
    assert network_hash(before) != network_hash(after)
    assert hashes(before)[2] != hashes(after)[2]
    saved = change in ("weight", "kept", "statistics")  # their values have a hash of their own
    assert (graph_hash(before) == graph_hash(after)) is saved


def test_tied_weights_are_told_from_equal_ones():
    def pair(tied: bool) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
        if tied:
            model[1].weight = model[0].weight
        else:
            model[1].load_state_dict(
                {**model[1].state_dict(), "weight": model[0].weight.detach().clone()}
            )
        return model

    equal, tied = (traced(pair(t)) for t in (False, True))
    assert network_hash(equal) != network_hash(tied)
    assert graph_hash(equal) != graph_hash(tied)


def test_dtype_and_input_count():
    model = nn.Sequential(nn.Conv2d(3, 3, 3))
    sizes = [trace(model.eval(), torch.zeros(1, 3, s, s)) for s in (8, 16)]
    double = trace(model.double().eval(), torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    assert len({graph_hash(g) for g in (*sizes, double)}) == 3


def test_the_settings_of_attention_count():
    class Attending(nn.Module):
        def __init__(self, heads: int) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.attention = nn.MultiheadAttention(16, heads, batch_first=True)

        def forward(self, x):
            tokens = x.flatten(2)[:, :, :16]
            return self.attention(tokens, tokens, tokens)[0]

    a, b = (hashes(traced(Attending(h))) for h in (2, 4))
    assert all(x != y for x, y in zip(a, b, strict=True))


def test_weights_change_keys_alone():
    a, b = Layers(nn.ReLU), Layers(nn.ReLU)
    with torch.no_grad():
        b.first.weight[0, 0, 0, 0] += 1
    first, second = hashes(traced(a)), hashes(traced(b))
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert first[2] != second[2]


class Unused(Layers):
    """The same network, with things in another order that no one reads."""

    def __init__(self, turned: bool) -> None:
        super().__init__(lambda: Scale(b=1, a=2) if turned else Scale(a=2, b=1))
        order = ("one", "two")
        for name in reversed(order) if turned else order:
            setattr(self, name, nn.Linear(2, 2))
        self.layer.options = {"x": 1, "y": 2} if not turned else {"y": 2, "x": 1}


def test_what_does_not_matter_does_not_count():
    same = {hashes(traced(Unused(turned), leaf_modules=[Scale])) for turned in (False, True)}
    assert len(same) == 1
    graph = traced(Layers(nn.ReLU))
    told = Preprocessing(16, 16, (0.5,) * 3, (0.5,) * 3, source="given")
    stores = [FeatureStore("/nowhere", graph, p, IMAGES, "w") for p in (P, told)]
    assert stores[0].key == stores[1].key
    for other in ({"mean": (0.4,) * 3}, {"std": (0.4,) * 3}, {"resize": 20}):
        changed = Preprocessing(**{**P.as_dict(), **other})
        assert FeatureStore("/nowhere", graph, changed, IMAGES, "w").key != stores[0].key


def test_another_process_finds_the_same(tmp_path):
    script = textwrap.dedent(
        """
        import functools, torch
        from torch import nn
        from torch.nn import functional as F
        from partopt.graph.build import trace
        from partopt.identity.network import graph_hash, network_hash
        K = {"a": 1, "b": [2, 3.0]}
        class Leaf(nn.Module):
            def __init__(self):
                super().__init__()
                self.names = {"x", "y", "z", "w"}
                self.call = functools.partial(F.leaky_relu, negative_slope=0.1)
                self.held = [object(), lambda x: x * K["a"]]
            def forward(self, x):
                return self.call(x) * len(self.names)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Leaf(), nn.Upsample(None, 2))
        graph = trace(model.eval(), torch.zeros(1, 3, 8, 8), leaf_modules=[Leaf])
        print(graph_hash(graph), network_hash(graph))
        """
    )
    (tmp_path / "net.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "net.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
    )
    with contextlib.redirect_stdout(io.StringIO()) as here:
        runpy.run_path(str(tmp_path / "net.py"), run_name="__main__")
    assert done.stdout == here.getvalue() != ""


def test_what_cannot_be_looked_into_is_taken_for_nothing_stored():
    class Closed:
        __slots__ = ()

        def __reduce_ex__(self, protocol):
            raise TypeError

    model = Layers(lambda: Scale(k=Closed()))
    here = graph_hash(traced(model, leaf_modules=[Scale]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("partopt.identity.inspection._NONCE", "another process")
        assert graph_hash(traced(model, leaf_modules=[Scale])) != here


def test_a_container_that_holds_itself_ends():
    ring: list = [1]
    ring.append(ring)
    other: list = [2]
    other.append(other)
    a, b = (
        graph_hash(traced(Layers(lambda v=v: Scale(k=v)), leaf_modules=[Scale]))
        for v in (ring, other)
    )
    assert a != b


def test_hashes_of_older_schemes_are_known_as_such():
    assert of_this_scheme(graph_hash(traced(Layers(nn.ReLU))))
    assert not of_this_scheme("0" * 64)


def test_the_source_is_part_of_every_key(monkeypatch, tmp_path):
    files = {
        p.relative_to(sources._ROOT).as_posix()
        for p in sources._with_imports([sources._ROOT / "attackers" / "features.py"])
    }
    assert {
        "attackers/features.py",
        "attackers/layout.py",
        "graph/splitting.py",
        "graph/tracing.py",
    } <= files
    assert not files & {"attackers/decoder.py", "attackers/linear.py"}
    graph = traced(Layers(nn.ReLU))
    before = FeatureStore("/nowhere", graph, P, IMAGES, "w").key
    monkeypatch.setattr("partopt.attackers.features.feature_source", lambda: "edited")
    assert FeatureStore("/nowhere", graph, P, IMAGES, "w").key != before


def test_a_changed_file_changes_the_digest(tmp_path):
    names = ["a.py", "b.py"]
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.py").write_text("y = 1\n")
    before = sources._digest([tmp_path / n for n in names])
    (tmp_path / "b.py").write_text("y = 2\n")
    assert sources._digest([tmp_path / n for n in names]) != before
