"""Names of nodes, sizes, optional arguments, and modules that are called twice."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partopt.errors import CutError, UsageError
from partopt.graph.build import trace
from partopt.graph.splitting import split
from partopt.graph.torchvision_cpu import models as tv

X = torch.zeros(1, 3, 32, 32)


class Caffe(nn.Module):
    """VGG with Caffe's names, which look like torch.fx's for a second call."""

    def __init__(self):
        super().__init__()
        for name, channels in (("conv1_1", 3), ("conv1_2", 8), ("conv2_1", 8), ("conv2_2", 8)):
            setattr(self, name, nn.Conv2d(channels, 8, 3, 1, 1))
            setattr(self, name.replace("conv", "relu"), nn.ReLU())

    def forward(self, x):
        x = self.relu1_2(self.conv1_2(self.relu1_1(self.conv1_1(x))))
        return self.relu2_2(self.conv2_2(self.relu2_1(self.conv2_1(x)))).mean((2, 3))


def test_a_modules_own_path_is_its_name():
    graph = trace(Caffe().eval(), X)
    paths = [f"{kind}{i}" for i in ("1_1", "1_2", "2_1", "2_2") for kind in ("conv", "relu")]
    assert [c.name for c in graph.cuts()] == paths
    for path in paths:
        assert graph.fx_node(graph.cut(path).node).target == path


def test_an_operation_never_takes_the_path_of_a_module():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.relu = nn.ReLU()
            self.relu_1 = nn.Conv2d(4, 4, 3)

        def forward(self, x):
            x = torch.relu(self.conv(x))
            return self.relu(self.relu_1(self.relu(x))).mean((2, 3))

    graph = trace(Mixed().eval(), X)
    for path in ("conv", "relu", "relu_1"):
        assert graph.fx_node(graph.cut(path).node).target == path
    names = [n.name for n in graph.nodes]
    assert len(set(names)) == len(names)
    # The function, then the module's first call, its namesake's own, and its second call.
    assert names[1:6] == ["conv", "relu_2", "relu", "relu_1", "relu_3"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()

    def forward(self, x):
        return self.relu(self.conv(x))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block, self.fc = nn.Conv2d(3, 8, 3), Block(), nn.Linear(8, 2)
        self.other = self.block

    def forward(self, x):
        x = self.block(self.stem(x))
        if x.shape[1] == 9:
            return x
        return self.fc(self.block(x).mean((2, 3)))


def plain_twice(self, x):
    return self.fc(self.block(self.block(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize("source", ["torch.fx", "torch.export"])
def test_a_block_that_is_called_twice_is_no_name_for_a_cut(source):
    model = Twice()
    if source == "torch.fx":
        model = type("PlainTwice", (Twice,), {"forward": plain_twice})()
    graph = trace(model.eval(), X)
    assert graph.source == source
    for name in ("block", "other"):
        with pytest.raises(CutError, match=r"called 2 times.*block.relu, block.relu_1"):
            graph.cut(name)
    first, second = graph.cut("block.relu"), graph.cut("block.relu_1")
    assert first.node < second.node
    assert first.shared == ("block.conv.bias", "block.conv.weight")
    assert second.shared == ()
    assert "in the clear in the tail" in first.remarks[0]


def test_one_module_under_two_names_is_called_by_both():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.c = self.b
            self.d = nn.Conv2d(8, 8, 3)
            self.e = self.d

        def forward(self, x):
            return self.e(self.c(self.b(self.a(x)))).mean((2, 3))

    graph = trace(Net().eval(), X)
    assert [c.name for c in graph.cuts()] == ["a", "b", "c", "e"]
    assert graph.cut("d").name == "e"


def test_tied_parameters_are_known_when_cuts_are_listed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
            self.c = nn.Linear(3, 3, bias=False)
            self.c.weight = self.a.weight

        def forward(self, x):
            return self.c(torch.relu(self.b(self.a(x.mean((2, 3))))))

    shared = {c.name: c.shared for c in trace(Net().eval(), X).cuts()}
    assert shared == {
        "mean": (),
        "a": ("a.weight",),
        "b": ("a.weight",),
        "relu": ("a.weight",),
    }


def test_complex_boundaries_are_told():
    class Net(nn.Module):
        def forward(self, x):
            return torch.fft.ifft2(torch.fft.fft2(x) * 2).real.mean((2, 3))

    cuts = {c.name: c.remarks for c in trace(Net(), X).cuts()}
    assert cuts["fft_fft2"] == ["cannot be exported: fft_fft2 is complex64"]
    assert cuts["getattr_1" if "getattr_1" in cuts else "getattr"] == []


class Args(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2), nn.Linear(8, 4)

    def forward(self, x, mask=None, *, scale=1.0, features=False):
        x = self.a(x).relu()
        if mask is not None:
            x = x * mask
        x = self.b(x)
        return x if features else self.fc(x.mean((2, 3))) * scale


def test_arguments_that_nobody_gives_keep_their_defaults():
    graph = trace(Args().eval(), X)
    assert [n.name for n in graph.nodes if n.op == "placeholder"] == ["x"]
    assert [c.name for c in graph.cuts()] == ["a", "relu", "b", "mean", "fc"]


@pytest.mark.parametrize("given", [{"features": True}, {"scale": 2.0, "mask": 3.0}])
def test_arguments_that_are_given(given):
    model = Args().eval()
    graph = trace(model, X, concrete_args=given)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(graph.module(x), model(x, **given))
    exported = trace(_Branching(model), X, concrete_args=given)
    assert exported.source == "torch.export"
    assert {"model.a", "model.b"} <= {n.name for n in exported.nodes}
    with torch.no_grad():
        assert torch.equal(exported.module(x), model(x, **given))


class _Branching(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, **given):
        return self.model(x if x.shape[2] == 32 else x[:, :, :32], **given)


def test_arguments_that_there_are_not():
    with pytest.raises(UsageError, match=r"`concrete_args` got 'maks'.*nearest: mask"):
        trace(Args().eval(), X, concrete_args={"maks": None})
    with pytest.raises(UsageError, match="'x', which is the input"):
        trace(Args().eval(), X, concrete_args={"x": None})


def late_sizes(x, y):
    return F.interpolate(y, size=x.shape[-2:])


def late_batch(x, y):
    return y.reshape(x.shape[0], -1, y.shape[2] * y.shape[3]).unsqueeze(2)


def late_shape(x, y):
    return y.view(x.size()[:1] + (8, -1, 1))  # noqa: RUF005  as people write it


def made_anew(x, y):
    return torch.cat([y, torch.ones(x.shape[0], 8, y.shape[2], 1, device=x.device)], 3)


def merged(x, y):
    n, c, h, w = y.shape
    return y.permute(0, 2, 3, 1).reshape(n * h, w, c).view(n, h, w, c).permute(0, 3, 1, 2)


@pytest.mark.parametrize("end", [late_sizes, late_batch, late_shape, made_anew, merged])
def test_shapes_do_not_carry_the_image_over(end):
    class Net(Args):
        def forward(self, x):
            y = self.b(self.a(x))
            return self.fc(end(x, y).mean((2, 3)))

    model = Net().eval()
    graph = trace(model, X)
    assert {"a", "b"} <= {c.name for c in graph.cuts("clean")}
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        want = model(x)
        for cut in graph.cuts("all"):
            assert all(spec.name != "x" for spec in cut.boundary), cut.name
            head, tail = split(graph, cut)
            assert torch.equal(tail(*head(x)), want), cut.name


def test_the_batch_is_recomputed_from_whichever_dimension_it_lies_in():
    class TokensFirst(Args):
        def forward(self, x):
            y = self.b(self.a(x)).flatten(2).permute(2, 0, 1)
            y = torch.relu(y)
            return self.fc(y.permute(1, 2, 0).reshape(x.shape[0], 8, -1).mean(2))

    model = TokensFirst().eval()
    graph = trace(model, X)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        head, tail = split(graph, "relu")
        assert torch.equal(tail(*head(x)), model(x))


def test_a_number_read_from_the_image_is_no_size():
    class Net(Args):
        def forward(self, x):
            y = self.b(self.a(x))
            return self.fc(y.mean((2, 3))) * (x > 2).sum(dtype=torch.int64)

    graph = trace(Net().eval(), X)
    assert "x" in [s.name for c in graph.cuts("all") for s in c.boundary]


def test_segmentation_networks_are_cut_without_the_image():
    torch.manual_seed(0)
    model = tv.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    x = torch.randn(2, 3, 32, 32)
    graph = trace(model, x[:1])
    cuts = graph.cuts("clean")
    assert len(cuts) > 5
    with torch.no_grad():
        want = model(x)["out"]
        assert torch.equal(graph.module(x)["out"], want)
        for cut in cuts[::3]:
            head, tail = split(graph, cut)
            assert torch.equal(tail(*head(x))["out"], want), cut.name


def test_vision_transformers_are_cut_at_every_block():
    timm = pytest.importorskip("timm", reason="extra [timm] is not installed")
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=32, patch_size=8, depth=3
    ).eval()
    graph = trace(model, X)
    names = {c.name for c in graph.cuts("clean")}
    assert {f"blocks.{i}.add_1" for i in range(3)} <= names
    assert graph.cut("norm").name == "norm.layer_norm"
