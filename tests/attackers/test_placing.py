import numpy as np
import pytest
import torch
from torch import nn

from partopt.attackers.layout import images_first, to_map
from partopt.attackers.placing import Mixed, Shapes, batch_place, measure
from partopt.errors import AttackError
from partopt.images.dead_leaves import dead_leaves

SIDE, CELLS, CHANNELS = 32, 8, 48


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(dead_leaves(5, SIDE, seed=5)).float() / 255


@pytest.fixture(scope="module")
def patches() -> nn.Module:
    """Non-overlapping patches of 4x4 pixels, no value lost: (N, 48, 8, 8)."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, CHANNELS, 4, 4)
    return nn.Sequential(conv, nn.GELU()).eval()


def shuffled(x: torch.Tensor) -> torch.Tensor:
    order = torch.from_numpy(np.random.default_rng(1).permutation(CELLS * CELLS))
    return x.flatten(2)[:, :, order].transpose(1, 2)


def windows(x: torch.Tensor) -> torch.Tensor:
    """(N, windows, cells of a window, C)"""
    n, c, h, w = x.shape
    x = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(n, -1, 16, c)


def special(x: torch.Tensor, count: int, last: bool = False) -> torch.Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    extra = torch.linspace(-1, 1, count * CHANNELS).view(1, count, CHANNELS)
    extra = extra.expand(len(x), -1, -1)
    return torch.cat([tokens, extra] if last else [extra, tokens], 1)


def heads(x: torch.Tensor) -> torch.Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return tokens.reshape(len(x), -1, 4, CHANNELS // 4).transpose(1, 2)


LAYOUTS = {
    "plain": lambda x: x,
    "channels last": lambda x: x.permute(0, 2, 3, 1),
    "columns first": lambda x: x.permute(0, 1, 3, 2),
    "batch last": lambda x: x.permute(1, 2, 3, 0),
    "batch second": lambda x: x.transpose(0, 1),
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "tokens last": lambda x: x.flatten(2),
    "tokens first": lambda x: x.flatten(2).permute(2, 0, 1),
    "tokens shuffled": shuffled,
    "mirrored": lambda x: x.flip(-1).flatten(2).transpose(1, 2),
    "one special": lambda x: special(x, 1),
    "two special": lambda x: special(x, 2),
    "five special": lambda x: special(x, 5),
    "three special last": lambda x: special(x, 3, last=True),
    "windows": windows,
    "windows in the batch": lambda x: windows(x).flatten(0, 1),
    "windows before the batch": lambda x: windows(x).transpose(0, 1).flatten(0, 1),
    "rows in the batch": lambda x: x.flatten(2).transpose(1, 2).reshape(-1, 2 * CELLS, CHANNELS),
    "five dimensions": lambda x: x.view(len(x), CHANNELS, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1),
    "heads": heads,
    "heads in the batch": lambda x: heads(x).flatten(0, 1),
    "flattened": lambda x: x.flatten(1),
    "flattened, channels last": lambda x: x.permute(0, 2, 3, 1).flatten(1),
    "complex": lambda x: torch.complex(x[:, ::2], x[:, 1::2]),
    "half": lambda x: x.half(),
    "with ones": lambda x: x[:, None, :, :, None],
}


def placed(net, layout, images, **kwargs):
    def run(batch: torch.Tensor) -> list[list[torch.Tensor]]:
        return [[layout(net(batch))]]

    one, three = (run(images[:n])[0][0].shape for n in (1, 3))
    shapes = [[Shapes("x", tuple(one), tuple(three), (1, 3))]]
    with torch.inference_mode():
        return run, measure(run, shapes, images, **kwargs)[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_cells_are_found_whatever_the_layout(name, patches, images):
    """Every cell of the map holds the values of its own patch of the picture, image by image."""
    run, places = placed(patches, LAYOUTS[name], images)
    assert places[0].measured
    with torch.inference_mode():
        want = patches(images)
        got = to_map(run(images)[0], places)
    assert got.shape[2:] == (CELLS, CELLS)
    tolerance = 1e-3 if name == "half" else 0.0
    own = got[:, : got.shape[1] - len(places[0].special) * CHANNELS]
    assert torch.allclose(own.sort(1).values, want.sort(1).values, atol=tolerance)


def test_special_cells_are_kept(patches, images):
    run, places = placed(patches, LAYOUTS["five special"], images)
    assert places[0].special == (0, 1, 2, 3, 4)
    with torch.inference_mode():
        got = to_map(run(images)[0], places)
    wanted = torch.linspace(-1, 1, 5 * CHANNELS)
    assert torch.allclose(got[0, CHANNELS:, 3, 4], wanted)


def test_many_special_values_are_spread_and_none_is_lost():
    from partopt.attackers.layout import REPEATED, Place

    tensor = torch.randn(2, 4 + 3, REPEATED)
    place = Place(cells=(0,), grid=(2, 2), order=(3, 4, 5, 6), special=(0, 1, 2))
    got = to_map([tensor], [place])
    assert got.shape[1] < 3 * REPEATED
    rest = got[:, REPEATED:].flatten(1)[:, : 3 * REPEATED]
    assert torch.equal(rest, tensor[:, :3].flatten(1))


def test_deep_layers_are_still_placed(images):
    """Wide receptive fields, global pooling in squeeze-excitation, strides to 4x4."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *[
            nn.Sequential(nn.Conv2d(c, d, 3, s, 1), nn.ReLU())
            for c, d, s in ((3, 16, 2), (16, 32, 2), (32, 32, 1), (32, 48, 2), (48, 48, 1))
        ]
    ).eval()
    _, places = placed(net, lambda x: x.permute(0, 3, 2, 1), images)
    assert places[0].measured
    assert (places[0].cells, places[0].grid) == ((1, 0), (4, 4))


def test_a_vector_lies_nowhere(images):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 64)).eval()
    _, places = placed(net, lambda x: x, images)
    assert not places[0].cells
    assert places[0].flat is None


def test_mixed_cells_are_said_to_be_unknown(images, patches):
    """Every value depends on the whole picture: no order of cells can be right."""
    torch.manual_seed(0)
    mix = torch.linalg.qr(torch.randn(CELLS * CELLS * CHANNELS, CELLS * CELLS * CHANNELS))[0]

    def layout(x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) @ mix).view_as(x)

    _, places = placed(patches, layout, images)
    assert not places[0].measured


@pytest.mark.parametrize(
    ("first", "second", "sizes", "wanted"),
    [
        ((1, 4, 5), (3, 4, 5), (1, 3), (0, 1)),
        ((4, 1, 5), (4, 3, 5), (1, 3), (1, 1)),
        ((16, 4), (48, 4), (1, 3), (0, 16)),
        ((4, 6), (4, 10), (3, 5), (1, 2)),
    ],
)
def test_the_batch_dimension_grows_one_to_one(first, second, sizes, wanted):
    place = batch_place(Shapes("x", first, second, sizes))
    assert (place.batch, place.rows) == wanted


@pytest.mark.parametrize(
    ("first", "second", "sizes"),
    [
        ((4, 5), (4, 5), (1, 3)),  # a mean over the batch
        ((1, 1), (3, 3), (1, 3)),  # every image against every other
        ((2, 5), (3, 5), (1, 3)),  # one row for the batch and one an image
        ((1, 5), (9, 5), (1, 3)),  # grows with its square
        ((5,), (3, 5), (1, 3)),
    ],
)
def test_what_does_not_grow_one_to_one_is_refused(first, second, sizes):
    with pytest.raises(AttackError, match="not exactly one dimension grows with the batch"):
        batch_place(Shapes("x", first, second, sizes))


@pytest.mark.parametrize(
    "layout",
    [lambda x: x - x.mean(0, keepdim=True), lambda x: x.flip(0), lambda x: x.roll(1, 0)],
    ids=["batch statistics", "reversed", "rolled"],
)
def test_images_that_change_each_other_are_noticed(layout, patches, images):
    _, places = placed(patches, layout, images)
    assert isinstance(places, Mixed)


@pytest.mark.parametrize("fixed", [1, 2, 4])
@pytest.mark.parametrize("name", ["plain", "tokens first", "windows in the batch"])
def test_a_fixed_batch_size_is_measured_too(name, fixed, patches, images):
    layout = LAYOUTS[name]

    def run(batch: torch.Tensor) -> list[list[torch.Tensor]]:
        assert len(batch) == fixed
        return [[layout(patches(batch))]]

    shape = tuple(run(images[:fixed])[0][0].shape)
    with torch.inference_mode():
        [places] = measure(
            run, [[Shapes("x", shape, shape, (fixed, fixed + 2))]], images, fixed=fixed
        )
        got = to_map(run(images[:fixed])[0], places)
        want = patches(images[:fixed])
    assert torch.equal(got.sort(1).values, want.sort(1).values)


def test_several_tensors_are_placed_each_for_itself(patches, images):
    def run(batch: torch.Tensor) -> list[list[torch.Tensor]]:
        x = patches(batch)
        return [[x.flatten(2).permute(2, 0, 1), x.mean((2, 3)), x[:, :, ::2, ::2]]]

    shapes = [
        [
            Shapes(str(i), tuple(a.shape), tuple(b.shape), (1, 3))
            for i, (a, b) in enumerate(zip(run(images[:1])[0], run(images[:3])[0], strict=True))
        ]
    ]
    [places] = measure(run, shapes, images)
    with torch.inference_mode():
        got = to_map(run(images)[0], places)
        want = patches(images)
    assert got.shape == (5, 3 * CHANNELS, CELLS, CELLS)
    assert torch.equal(got[:, :CHANNELS].sort(1).values, want.sort(1).values)
    assert torch.allclose(got[:, CHANNELS : 2 * CHANNELS, 2, 5], want.mean((2, 3)))


def test_rows_of_an_image_are_brought_together(patches, images):
    run, places = placed(patches, LAYOUTS["windows before the batch"], images)
    assert (places[0].rows, places[0].together) == (4, False)
    with torch.inference_mode():
        parts = images_first(run(images)[0][0], places[0])
        assert torch.equal(parts, windows(patches(images)))
