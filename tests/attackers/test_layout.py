import torch

from partopt.attackers.layout import to_map


def test_maps_stay():
    x = torch.randn(2, 7, 5, 5)
    assert torch.equal(to_map([x]), x)


def test_channels_last_maps_are_turned():
    x = torch.randn(2, 6, 6, 24)
    assert torch.equal(to_map([x]), x.permute(0, 3, 1, 2))


def test_tokens_with_a_class_token_keep_every_value():
    x = torch.randn(2, 17, 3)
    m = to_map([x])
    assert m.shape == (2, 6, 4, 4)
    assert torch.equal(m[:, :3].flatten(2).transpose(1, 2), x[:, 1:])
    assert torch.equal(m[:, 3:, 0, 0], x[:, 0])


def test_vectors_and_odd_shapes_become_channels():
    assert to_map([torch.randn(2, 9)]).shape == (2, 9, 1, 1)
    assert to_map([torch.randn(2, 6, 3)]).shape == (2, 18, 1, 1)
    assert to_map([torch.randn(2, 2, 3, 4, 5)]).shape == (2, 120, 1, 1)


def test_several_tensors_are_stacked():
    a, b = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)
    m = to_map([a, b])
    assert m.shape == (2, 8, 8, 8)
    assert torch.equal(m[:, 3:, ::2, ::2], b)
