"""Properties of networks put together at random: the graph is the model, no layout hides a leak."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from partopt.attackers.base import Context
from partopt.attackers.features import FeatureStore
from partopt.attackers.linear import Linear
from partopt.attackers.pairs import Pairs
from partopt.attackers.scoring import ssim_of
from partopt.errors import TraceError
from partopt.graph.build import trace
from partopt.graph.splitting import split
from partopt.images.dead_leaves import dead_leaves
from partopt.images.load import ImageSet, Split
from partopt.preprocessing import Preprocessing
from partopt.studies.single import attack_cut

from .generated import SIDE, Net

P = Preprocessing(SIDE, SIDE, (0.5,) * 3, (0.5,) * 3)
SEEDS = range(24)
MANY = range(24, 144)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return dead_leaves(160, SIDE, seed=11)


def made(seed: int) -> Net:
    return Net(seed).eval()


def follows(net: Net) -> None:
    """The graph and all its splits give what the model gives, bit for bit."""
    graph = trace(net, torch.zeros(1, 3, SIDE, SIDE))
    x = torch.randn(3, 3, SIDE, SIDE)
    with torch.no_grad():
        want = net(x.clone())
        assert torch.equal(graph.module(x.clone()), want)
        for cut in graph.cuts("all"):
            head, tail = split(graph, cut)
            assert torch.equal(tail(*head(x.clone())), want), cut.name


def rebuilt(net: Net, pictures: np.ndarray, folder) -> float:
    """SSIM that the linear attacker reaches at the last cut, with 100 pairs."""
    graph = trace(net, torch.zeros(1, 3, SIDE, SIDE))
    images = ImageSet(pictures, Split(100, 30, 30), "test", "digest")
    store = FeatureStore(folder, graph, P, images, "weights")
    cut = graph.cut("last.act")
    attacker = Linear(max_cells=10_000)
    attacker.fit(
        Pairs.of(
            (store.rows(cut, "train"), pictures[:100]),
            (store.rows(cut, "validation"), pictures[100:130]),
        ),
        Context(),
    )
    return float(ssim_of(attacker.reconstruct, store.rows(cut, "test"), pictures[130:]).mean())


def test_graphs_are_the_models_and_few_are_refused():
    refused = []
    for seed in SEEDS:
        try:
            follows(made(seed))
        except TraceError as error:
            refused.append(str(error))
    assert len(refused) <= len(SEEDS) // 8, refused


@pytest.mark.slow
def test_many_graphs_are_the_models_and_few_are_refused():
    refused = []
    for seed in MANY:
        try:
            follows(made(seed))
        except TraceError as error:
            refused.append(str(error))
    assert len(refused) <= len(MANY) // 8, refused


@pytest.mark.parametrize("seed", range(8))
def test_no_layout_hides_a_leak_from_the_linear_attacker(seed, pictures, tmp_path):
    net = made(seed)
    assert rebuilt(net, pictures, tmp_path) > 0.8, net.described


@pytest.mark.slow
@pytest.mark.parametrize("seed", MANY)
def test_no_layout_hides_a_leak_from_the_linear_attacker_in_many(seed, pictures, tmp_path):
    net = made(seed)
    assert rebuilt(net, pictures, tmp_path) > 0.8, net.described


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_an_invertible_head_never_scores_below_nine_tenths(seed, tmp_path, monkeypatch):
    """The default panel of the default budget, whatever the layout."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "generated_net.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(__file__.rpartition('/')[0])!r})\n"
        "from generated import Net\n"
        f"def make(): return Net({seed})\n"
    )
    found = attack_cut("generated_net:make", "last.act", budget="quick", input_size=SIDE)
    strongest = found.strongest
    assert strongest is not None
    assert strongest.score is not None
    assert strongest.score.raw >= 0.9, found
