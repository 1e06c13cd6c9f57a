from __future__ import annotations

import torch

from partopt.graph.build import trace
from partopt.graph.torchvision_cpu import models as tv
from partopt.plans.blocks import blocks, safe_from


def test_blocks_part_the_network(made):
    assert [b.first for b in made.blocks] == [0, *(b.last + 1 for b in made.blocks[:-1])]
    assert made.blocks[-1].last == len(made.graph.nodes) - 1
    assert sum(b.flops for b in made.blocks) == made.graph.flops
    names = [n.fx_name for n in made.graph.nodes if n.is_layer]
    assert [n for b in made.blocks for n in b.layers] == names


def test_a_residual_block_is_one_unit_and_all_else_has_one_layer(made):
    assert [(b.name, len(b.layers)) for b in made.blocks] == [
        ("stem.0", 1),
        ("res.one.0", 2),
        ("wide.0", 1),
        ("odd", 1),
        ("mirrored", 1),
        ("fc.0", 1),
        ("fc.2", 1),
    ]


def test_one_tensor_enters_each_block(made):
    assert made.blocks[0].cut is None
    for block in made.blocks[1:]:
        assert len(block.cut.boundary) == 1
        assert block.cut.node < block.first


def test_activations_and_pooling_belong_to_the_layer_before(made):
    stem = [n.op for n in made.graph.nodes[: made.blocks[0].last + 1]]
    assert stem[-3:] == ["BatchNorm2d", "ReLU", "MaxPool2d"]


def test_published_networks():
    graph = trace(tv.get_model("resnet18", weights=None), torch.zeros(1, 3, 64, 64))
    assert [len(b.layers) for b in blocks(graph)] == [1, 2, 2, 3, 2, 3, 2, 3, 2, 1]


def test_clear_blocks_begin_at_or_behind_the_safe_cut(made):
    res = made.graph.cut("res.relu_1")
    assert safe_from(made.blocks, res) == 2
    behind = made.graph.cut("wide.0")
    assert behind.node > made.blocks[2].cut.node
    assert safe_from(made.blocks, behind) == 3, "not in the middle of a block, and not before it"
    assert safe_from(made.blocks[:2], behind) is None
    for block in made.blocks[1:]:
        assert made.blocks[safe_from(made.blocks, block.cut)] is block
