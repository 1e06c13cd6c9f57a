import pytest
import torch
from torch import nn

from partopt.errors import CutError
from partopt.graph.build import trace
from partopt.graph.splitting import capture, split
from partopt.graph.torchvision_cpu import models as tv

# One small-input variant of every architecture family of torchvision's classification zoo.
FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "googlenet": 32,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_x_400mf": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "resnext50_32x4d": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11_bn": 32,
    "vit_b_32": 224,
    "wide_resnet50_2": 32,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_bit_identical_at_every_cut(name):
    torch.manual_seed(0)
    model = tv.get_model(name, weights=None).eval()
    x = torch.randn(1, 3, FAMILIES[name], FAMILIES[name])
    graph = trace(model, x)
    cuts = graph.cuts("clean", max_cuts=24)
    several = [c for c in graph.cuts("all") if len(c.boundary) > 1]
    cuts += several[:: max(1, len(several) // 8)]
    kept = x.clone()
    with torch.no_grad():
        want = model(x)
        for cut in cuts:
            head, tail = split(graph, cut)
            boundary = head(x)
            assert [tuple(t.shape) for t in boundary] == [s.shape for s in cut.boundary]
            before = [t.clone() for t in boundary]
            assert torch.equal(tail(*boundary), want), cut.name
            assert all(map(torch.equal, boundary, before)), f"{cut.name}: the tail wrote"
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", ["swin_t", "vit_b_32", "shufflenet_v2_x0_5"])
def test_other_batch_sizes(name):
    torch.manual_seed(0)
    model = tv.get_model(name, weights=None).eval()
    size = FAMILIES[name]
    graph = trace(model, torch.zeros(1, 3, size, size))
    x = torch.randn(3, 3, size, size)
    with torch.no_grad():
        want = model(x)
        for cut in graph.cuts("clean")[::6]:
            head, tail = split(graph, cut)
            assert torch.equal(tail(*head(x)), want), cut.name


def test_in_place_activations_corrupt_nothing(tiny):
    x = torch.randn(2, 3, 32, 32)
    graph = trace(tiny, torch.zeros(1, 3, 32, 32))
    cuts = graph.cuts("all")
    with torch.no_grad():
        want = tiny(x)
        together = capture(graph, cuts)(x)
        for cut, captured in zip(cuts, together, strict=True):
            head, tail = split(graph, cut)
            alone = head(x)
            assert all(map(torch.equal, alone, captured)), cut.name
            assert torch.equal(tail(*captured), want), cut.name
        # The value before the in-place activation is the one before it, negative parts and all.
        conv = together[[c.name for c in cuts].index("stem.0")][0]
        assert (conv < 0).any()


def test_each_side_holds_its_own_parameters_only(tiny):
    graph = trace(tiny, torch.zeros(1, 3, 32, 32))
    head, tail = split(graph, "down.1")
    assert set(head.state_dict()) == {
        "stem.0.weight",
        "stem.0.bias",
        "down.0.weight",
        "down.0.bias",
    }
    assert not set(tail.state_dict()) & set(head.state_dict())
    assert len(tail.state_dict()) + len(head.state_dict()) == len(tiny.state_dict())


def test_several_boundary_tensors_inside_a_residual_block():
    model = tv.get_model("resnet18", weights=None).eval()
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    cut = graph.cut("layer1.0.conv1")
    assert [s.name for s in cut.boundary] == ["maxpool", "layer1.0.conv1"]
    assert cut.payload_bytes == sum(s.bytes for s in cut.boundary)


def test_a_cut_of_another_model_is_refused(tiny):
    graph = trace(tiny, torch.zeros(1, 3, 32, 32))
    other = trace(
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1)), torch.zeros(1, 3, 8, 8)
    )
    with pytest.raises(CutError, match="lacks"):
        split(graph, other.cuts()[0])


def test_timm_style_token_models_split():
    timm = pytest.importorskip("timm", reason="extra [timm] is not installed")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
    x = torch.randn(2, 3, 224, 224)
    graph = trace(model, x[:1])
    with torch.no_grad():
        want = model(x)
        for cut in graph.cuts("clean", max_cuts=6):
            head, tail = split(graph, cut)
            assert torch.equal(tail(*head(x)), want), cut.name
