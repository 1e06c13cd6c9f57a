import torch

from partopt.attackers.layout import Place, images_first, suggested, to_map

MAP = Place(cells=(1, 2), grid=(5, 5))


def test_maps_stay():
    x = torch.randn(2, 7, 5, 5)
    assert torch.equal(to_map([x], [MAP]), x)


def test_channels_last_maps_are_turned():
    x = torch.randn(2, 6, 6, 24)
    assert torch.equal(to_map([x], [Place(cells=(0, 1), grid=(6, 6))]), x.permute(0, 3, 1, 2))


def test_tokens_with_a_class_token_keep_every_value():
    x = torch.randn(2, 17, 3)
    place = Place(cells=(0,), grid=(4, 4), order=tuple(range(1, 17)), special=(0,))
    m = to_map([x], [place])
    assert m.shape == (2, 6, 4, 4)
    assert torch.equal(m[:, :3].flatten(2).transpose(1, 2), x[:, 1:])
    assert torch.equal(m[:, 3:, 0, 0], x[:, 0])


def test_tokens_are_put_where_they_belong():
    x = torch.randn(2, 4, 3)
    m = to_map([x], [Place(cells=(0,), grid=(2, 2), order=(2, 0, 3, 1))])
    assert torch.equal(m[:, :, 0, 0], x[:, 2])
    assert torch.equal(m[:, :, 1, 0], x[:, 3])


def test_vectors_become_channels():
    assert to_map([torch.randn(2, 9)], [Place()]).shape == (2, 9, 1, 1)
    assert to_map([torch.randn(2, 6, 3)], [Place()]).shape == (2, 18, 1, 1)


def test_flattened_maps_are_folded_back():
    x = torch.randn(2, 7, 5, 5)
    first = Place(flat=(7, 5, 5, True), grid=(5, 5))
    last = Place(flat=(7, 5, 5, False), grid=(5, 5))
    assert torch.equal(to_map([x.flatten(1)], [first]), x)
    assert torch.equal(to_map([x.permute(0, 2, 3, 1).flatten(1)], [last]), x)


def test_several_tensors_are_stacked():
    a, b = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)
    m = to_map([a, b], [Place(cells=(1, 2), grid=(8, 8)), Place(cells=(1, 2), grid=(4, 4))])
    assert m.shape == (2, 8, 8, 8)
    assert torch.equal(m[:, 3:, ::2, ::2], b)


def test_both_parts_of_complex_values_are_kept():
    x = torch.complex(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4))
    m = to_map([x], [Place(cells=(1, 2), grid=(4, 4))])
    assert torch.equal(m, torch.view_as_real(x).permute(0, 1, 4, 2, 3).flatten(1, 2))
    assert torch.equal(to_map([x.conj()], [Place(cells=(1, 2), grid=(4, 4))])[:, 1], -x[:, 0].imag)


def test_images_come_first():
    x = torch.randn(3, 4, 5, 2)  # images, rows, the rest
    merged, apart = x.flatten(0, 1), x.transpose(0, 1).flatten(0, 1)
    assert torch.equal(images_first(x.movedim(0, 2), Place(batch=2)), x)
    assert torch.equal(images_first(merged, Place(rows=4)), x)
    assert torch.equal(images_first(apart, Place(rows=4, together=False)), x)
    assert torch.equal(images_first(x[0], Place(batch=None)), x[:1])


def test_places_are_plain_values_and_back():
    place = Place(cells=(0,), grid=(2, 2), order=(2, 0, 3, 1), special=(4,), why="seen")
    assert Place.of_dict(place.as_dict()) == place


def test_what_shapes_suggest():
    assert suggested((7, 5, 5), Place()).cells == (1, 2)
    assert suggested((5, 5, 7), Place()).cells == (0, 1)
    assert suggested((18, 3), Place()).special == (0, 1)
    assert suggested((7,), Place()) == Place()
