"""Floors under the attackers' strength, on real weights and photos."""

from __future__ import annotations

import time

import pytest
import torch

from partopt.attackers.base import Context
from partopt.attackers.features import MIRRORED, FeatureStore
from partopt.attackers.pairs import Pairs
from partopt.attackers.panel import make
from partopt.attackers.rows import Rows
from partopt.attackers.scoring import ssim_of
from partopt.images.load import Split, at_resolution, load_images
from partopt.models.load import load_model

pytestmark = pytest.mark.shared_data

# Raw SSIM that plain ridge regression reaches on MobileNetV2 at 224x224 with 500 training photos.
LINEAR = {"features.0": 0.95, "features.3": 0.58, "features.6": 0.43, "features.10": 0.37}


@pytest.fixture(scope="module")
def mobilenet(shared, tmp_path_factory):
    model = load_model(
        "mobilenet_v2", weights=str(shared / "weights" / "mobilenet_v2.pth"), mean=[0.5], std=[0.5]
    )
    images = load_images(shared, model.preprocessing, Split(500, 48, 64))
    graph = model.trace()
    folder = tmp_path_factory.mktemp("features")
    store = FeatureStore(folder, graph, model.preprocessing, images, model.weights_hash)
    return store, {n: graph.cut(n) for n in LINEAR}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "features.10" else [pytest.mark.slow]) for n in LINEAR],
)
def test_linear_reaches_what_a_plain_one_does(mobilenet, name, record_property):
    store, cuts = mobilenet
    s = store.images
    rows = {
        p: store.rows(cuts[name], p, list(cuts.values())) for p in ("train", "validation", "test")
    }
    attacker = make("linear")
    start = time.monotonic()
    attacker.fit(
        Pairs.of((rows["train"], s.part("train")), (rows["validation"], s.part("validation"))),
        Context(),
    )
    record_property("seconds", time.monotonic() - start)
    assert ssim_of(attacker.reconstruct, rows["test"], s.part("test")).mean() >= LINEAR[name]


@pytest.mark.slow
def test_a_small_decoder_does_clearly_better(mobilenet):
    store, cuts = mobilenet
    cut, s = cuts["features.10"], store.images
    pictures = at_resolution(s.images, 96)
    train, held_out, test = (pictures[slice(*s.bounds(p))] for p in ("train", "validation", "test"))
    decoder = make("decoder", {"epochs": 2, "width": 64, "blocks": 1, "batch": 8})
    torch.manual_seed(0)
    decoder.fit(
        Pairs.of(
            (
                store.rows(cut, "train").joined(store.rows(cut, MIRRORED)),
                Rows([train, train[..., ::-1]]),
            ),
            (store.rows(cut, "validation"), held_out),
        ),
        Context(),
    )
    own = ssim_of(decoder.reconstruct, store.rows(cut, "test"), test).mean()
    below = ssim_of(decoder.linear.reconstruct, store.rows(cut, "test"), test).mean()
    assert own > below + 0.02
