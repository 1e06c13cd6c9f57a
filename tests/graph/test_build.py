import pytest
import torch
from torch import nn

from partopt.errors import CutError, TraceError, UsageError
from partopt.graph.build import trace
from partopt.graph.torchvision_cpu import models as tv

X = torch.zeros(1, 3, 224, 224)


@pytest.fixture(scope="module")
def zoo():
    return {
        n: trace(tv.get_model(n, weights=None), X) for n in ("vgg16", "resnet50", "efficientnet_b0")
    }


def test_names_are_torchvisions(zoo):
    names = [n.name for n in zoo["resnet50"].nodes]
    assert "layer4.2.relu_2" in names
    assert "layer1.0.downsample.0" in names
    assert "features.2.1.add" in [n.name for n in zoo["efficientnet_b0"].nodes]


def test_figures_match_the_published_sizes(zoo):
    # torchvision documents 15.47, 4.09 and 0.39 GMACs, and 138.4, 25.6 and 5.3 million parameters.
    for name, gmacs, params in (
        ("vgg16", 15.47, 138.36),
        ("resnet50", 4.09, 25.56),
        ("efficientnet_b0", 0.386, 5.29),
    ):
        graph = zoo[name]
        assert graph.flops / 2e9 == pytest.approx(gmacs, rel=0.01)
        assert graph.param_bytes / 4e6 == pytest.approx(params, rel=0.01)


def test_published_cut_points(zoo):
    """The counts of tables I and II of arXiv:2404.07437."""
    vgg = zoo["vgg16"].cuts("paper")
    assert [c.head_layers for c in vgg] == list(range(1, 14))
    resnet = zoo["resnet50"].cuts("paper")
    main_path = [
        sum(n.is_layer and "downsample" not in n.name for n in zoo["resnet50"].nodes[: c.node + 1])
        for c in resnet
    ]
    assert main_path == [1, 10, 22, 40, 49]
    b0 = zoo["efficientnet_b0"].cuts("paper")
    assert len(b0) == 8
    blocks = []
    for cut in b0:
        nodes = zoo["efficientnet_b0"].nodes[: cut.node + 1]
        # Every MBConv block lies at features.STAGE.BLOCK with a squeeze-excitation inside.
        blocks.append(len({tuple(n.name.split(".")[1:3]) for n in nodes if "fc2" in n.name}))
    assert blocks == [0, 1, 3, 5, 8, 11, 15, 16]
    assert b0[0].name == "features.0.2"
    assert b0[-1].name == "features.8.2"


def test_paper_cuts_of_another_architecture_are_refused(tiny):
    with pytest.raises(UsageError, match="no cut points for Tiny"):
        trace(tiny, torch.zeros(1, 3, 32, 32)).cuts("paper")


def test_thinning_keeps_stages_and_the_limit(zoo):
    graph = zoo["efficientnet_b0"]
    cuts = graph.cuts("clean", max_cuts=24)
    assert len(cuts) == 24
    stages = {c.name for c in graph.cuts("stage")}
    assert stages <= {c.name for c in cuts}
    assert [c.index for c in cuts] == list(range(24))
    share = [c.head_flops / graph.flops for c in cuts]
    assert share == sorted(share)
    assert cuts == graph.cuts("clean", max_cuts=24)


def test_equal_information_is_one_cut(zoo):
    cut = zoo["vgg16"].cut("classifier.1")
    assert "classifier.2" in cut.aliases  # dropout
    assert zoo["resnet50"].cut("flatten").name == "avgpool"


def test_the_answer_and_the_input_are_no_cuts(zoo):
    for graph in zoo.values():
        assert all(c.tail_layers > 0 for c in graph.cuts("clean"))
    with pytest.raises(CutError, match="cannot be parted"):
        zoo["resnet50"].cut("fc")


def test_module_paths_name_their_last_node(zoo):
    assert zoo["resnet50"].cut("layer2").name == "layer2.3.relu_2"
    assert zoo["efficientnet_b0"].cut("features.3").name == "features.3.1.add"


def test_unknown_names_offer_near_ones(zoo):
    with pytest.raises(CutError, match=r"nearest: .*layer3"):
        zoo["resnet50"].cuts(["layer3.0.rulu_2"])
    with pytest.raises(UsageError, match="'clean'"):
        zoo["resnet50"].cuts("neat")


def test_peak_activation_of_a_known_case():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 64, 2))
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    cut = graph.cut("0")
    assert cut.head_peak_activation_bytes == (3 + 4) * 64 * 4
    assert cut.payload_bytes == 4 * 64 * 4
    assert cut.head_param_bytes == (3 * 4 + 4) * 4
    assert cut.head_flops == 2 * 3 * 4 * 64
    assert cut.aliases == ("1",)


class Branches(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Branches()

    def forward(self, x):
        return self.inner(x) + 1


def test_untraceable_model_names_module_and_line():
    with pytest.raises(TraceError) as caught:
        trace(Outer(), torch.zeros(1, 3, 8, 8))
    text = str(caught.value)
    assert "module `inner`" in text
    assert "test_build.py:" in text
    assert "x.sum() > 0" in text
    assert "leaf_modules" in text


def test_leaf_modules_and_concrete_args():
    graph = trace(Outer(), torch.zeros(1, 3, 8, 8), leaf_modules=[Branches])
    assert graph.source == "torch.fx"
    assert [n.name for n in graph.nodes][1] == "inner"

    class Flag(nn.Module):
        def forward(self, x, double=False):
            y = x + 1
            if double:
                y = y * 2
            return y - 3

    graph = trace(Flag(), torch.zeros(1, 3, 8, 8), concrete_args={"double": True})
    assert "mul" in [n.op for n in graph.nodes]


def test_export_is_the_second_way_in():
    class Shapes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.act = nn.ReLU(inplace=True)
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            y = self.act(self.conv(x))
            if y.shape[1] == 4:  # symbolic tracing cannot branch on a proxy
                y = y.mean((2, 3))
            return self.fc(y)

    model = Shapes().eval()
    graph = trace(model, torch.zeros(1, 3, 9, 9))
    assert graph.source == "torch.export"
    assert {"conv", "act", "fc"} <= {n.name for n in graph.nodes}
    assert graph.fixed_batch is None
    assert [c.name for c in graph.cuts("clean")] == ["conv", "act", "mean"]


def test_the_model_is_left_as_it_was(tiny):
    tiny.train()
    flags = [(m.training, getattr(m, "inplace", None)) for m in tiny.modules()]
    trace(tiny, torch.zeros(1, 3, 32, 32))
    assert [(m.training, getattr(m, "inplace", None)) for m in tiny.modules()] == flags
