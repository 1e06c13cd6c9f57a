import errno
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from partopt.attackers import kept
from partopt.attackers.base import Context
from partopt.attackers.features import MIRRORED, FeatureStore, Making
from partopt.attackers.linear import Linear
from partopt.attackers.pairs import Pairs
from partopt.attackers.scoring import ssim_of
from partopt.cache import written_to
from partopt.errors import AttackError, StorageError
from partopt.graph.build import trace
from partopt.images.load import ImageSet, Split
from partopt.preprocessing import Preprocessing

P = Preprocessing(48, 48, (0.5,) * 3, (0.5,) * 3)


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 12, 5, 3, 2)
        self.factor = factor
        self.fc = nn.Linear(12, 2)

    def forward(self, x):
        x = self.conv(x) * self.factor
        return self.fc(x.mean((2, 3)))


def store_of(model: nn.Module, leaves, folder, **kwargs) -> FeatureStore:
    graph = trace(model.eval(), torch.zeros(1, 3, 48, 48))
    images = ImageSet(leaves, Split(100, 30, 30), "test", "digest")
    return FeatureStore(
        folder, graph, P, images, f"weights {kwargs.pop('key', 0)}", Making(**kwargs)
    )


@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_scale_changes_no_score(factor, leaves, tmp_path):
    scores = []
    for i, f in enumerate((1.0, factor)):
        store = store_of(Scaled(f), leaves, tmp_path, key=i)
        cut = store.graph.cut("mul")
        parts = {p: store.rows(cut, p) for p in ("train", "validation", "test")}
        attacker = Linear(max_cells=10_000)
        attacker.fit(
            Pairs.of((parts["train"], leaves[:100]), (parts["validation"], leaves[100:130])),
            Context(),
        )
        scores.append(ssim_of(attacker.reconstruct, parts["test"], leaves[130:160]).mean())
    assert scores[0] > 0.5
    assert abs(scores[0] - scores[1]) < 0.02


def test_one_pass_for_all_cuts(tiny, leaves, tmp_path):
    store = store_of(tiny, leaves[:, :, :48, :48], tmp_path)
    cuts = list(store.graph.cuts("all"))
    store.rows(cuts[-1], "train", cuts)
    assert store.passes == 1 + 3  # statistics, then train, validation and test
    for cut in cuts:
        for part in ("train", "validation", "test"):
            store.rows(cut, part)
    assert store.passes == 4


def test_rows_are_normalised_and_in_split_order(leaves, tmp_path):
    model = Scaled(1.0)
    store = store_of(model, leaves, tmp_path)
    cut = store.graph.cut("conv")
    rows = store.rows(cut, "train")
    got = rows.take(range(64)).astype(np.float64)
    assert abs(got.mean((0, 2, 3))).max() < 1e-2
    assert abs(got.std((0, 2, 3)) - 1).max() < 1e-2
    with torch.no_grad():
        unit = torch.from_numpy(leaves[130:131]).float() / 255
        raw = model.conv(P.normalise(unit))
        white_box = store.head(cut)(unit)
    test = torch.from_numpy(store.rows(cut, "test").take(range(1))).float()
    assert torch.allclose(white_box, test, atol=2e-2)
    assert not torch.allclose(raw, test, atol=2e-2)


def test_mirrored_rows_are_features_of_mirrored_images(leaves, tmp_path):
    model = Scaled(1.0)
    store = store_of(model, leaves, tmp_path)
    cut = store.graph.cut("conv")
    mirrored = torch.from_numpy(store.rows(cut, MIRRORED).take(range(2))).float()
    unit = torch.from_numpy(leaves[:2, :, :, ::-1].copy()).float() / 255
    assert torch.allclose(store.head(cut)(unit), mirrored, atol=2e-2)
    assert len(store.rows(cut, MIRRORED)) == 100


def test_byte_budget_is_kept(tiny, leaves, tmp_path):
    cuts = trace(tiny, torch.zeros(1, 3, 48, 48)).cuts("all")
    one = max(c.payload_bytes for c in cuts) // 2 * 160
    store = store_of(tiny, leaves, tmp_path, budget_bytes=int(one * 1.2))
    for cut in cuts:
        store.rows(cut, "train", cuts)
        used = sum(f.stat().st_size for f in tmp_path.rglob("*.f16"))
        assert used <= one * 1.2
    assert store.passes > 4


def test_features_are_found_again(leaves, tmp_path):
    first = store_of(Scaled(1.0), leaves, tmp_path)
    cut = first.graph.cut("conv")
    want = first.rows(cut, "test").take(range(30))
    again = store_of(Scaled(1.0), leaves, tmp_path)
    assert np.array_equal(again.rows(again.graph.cut("conv"), "test").take(range(30)), want)
    assert again.passes == 0
    other = store_of(Scaled(1.0), leaves, tmp_path, key="other weights")
    other.rows(other.graph.cut("conv"), "test")
    assert other.passes > 0


@pytest.mark.parametrize("what", ["weights", "images", "preprocessing"])
def test_features_of_something_else_are_not_found(what, leaves, tmp_path):
    graph = trace(Scaled(1.0).eval(), torch.zeros(1, 3, 48, 48))
    given = {
        "weights": ("w", "other w"),
        "images": ("digest", "other digest"),
        "preprocessing": (P, replace(P, std=(0.25,) * 3)),
    }

    def store(other: str) -> FeatureStore:
        w, digest, preprocessing = (both[name == other] for name, both in given.items())
        images = ImageSet(leaves, Split(100, 30, 30), "test", digest)
        return FeatureStore(tmp_path, graph, preprocessing, images, w)

    store("nothing").rows(graph.cut("conv"), "test")
    again, other = store("nothing"), store(what)
    for s in (again, other):
        s.rows(graph.cut("conv"), "test")
    assert again.passes == 0
    assert other.passes > 0


class Rare(nn.Module):
    """Its maps are huge where a pixel is white, which no training image has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.dirac_(self.conv.weight)
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        x = self.conv(x)
        x = x + torch.relu(x - 0.9) * 1e9
        return self.fc(x.mean((2, 3)))


def test_what_half_precision_cannot_hold_stays_finite(leaves, tmp_path):
    """An infinite map would fail every attack, or be skipped as one that tells nothing."""
    images = leaves // 2
    images[-1, :, 5, 7] = 255
    store = store_of(Rare(), images, tmp_path)
    cut = store.graph.cut("add")
    for maps in (store.rows(cut, "test").take(range(30)), store.maps_of(cut, images[-2:])):
        assert np.isfinite(maps).all()
        assert np.argmax(maps[-1, 0]) == 5 * 48 + 7
        assert maps[-1].max() > 1e4
        assert maps[-2].max() < 100


def test_a_head_that_overflows_is_an_error_not_protection(leaves, tmp_path):
    store = store_of(Scaled(float("inf")), leaves, tmp_path)
    with pytest.raises(AttackError, match="not finite"):
        store.rows(store.graph.cut("mul"), "train")


class OneAtATime(Scaled):
    """Written for one image: it cannot run on a batch."""

    def forward(self, x):
        x = self.conv(x).view(1, 12, 16, 16)
        return self.fc(x.mean((2, 3)))


def test_head_of_a_graph_with_a_fixed_batch(leaves, tmp_path):
    store = store_of(OneAtATime(1.0), leaves[:, :, :48, :48], tmp_path)
    assert store.graph.fixed_batch == 1
    cut = store.graph.cut("view")
    stored = torch.from_numpy(store.rows(cut, "test").take(range(3))).float()
    unit = torch.from_numpy(leaves[130:133, :, :48, :48]).float() / 255
    unit.requires_grad_(True)
    maps = store.head(cut)(unit)
    assert torch.allclose(maps, stored, atol=2e-2)
    maps.square().sum().backward()
    assert all(float(g.abs().sum()) > 0 for g in unit.grad)


class Tokens(nn.Module):
    """Patches as tokens, in the order and with the batch where `layout` puts them."""

    def __init__(self, layout) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.act, self.fc = nn.Conv2d(3, 48, 4, 4), nn.Tanh(), nn.Linear(48, 2)
        self.layout = layout

    def forward(self, x):
        x = self.act(self.layout(self.patch(x).flatten(2).permute(0, 2, 1)))
        return self.fc(x.mean(tuple(range(x.ndim - 1)))[None])


ORDER = torch.from_numpy(np.random.default_rng(0).permutation(144))
LAYOUTS = {
    "batch first": lambda x: x,
    "tokens first": lambda x: x.permute(1, 0, 2),
    "windows in the batch": lambda x: x.reshape(-1, 36, 48),
    "tokens shuffled": lambda x: x[:, ORDER],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_layout_hides_a_leak(name, leaves, tmp_path):
    store = store_of(Tokens(LAYOUTS[name]), leaves, tmp_path)
    cut = store.graph.cut("act")
    attacker = Linear(max_cells=10_000)
    train, held_out = store.rows(cut, "train"), store.rows(cut, "validation")
    assert (len(train), len(held_out)) == (100, 30)
    attacker.fit(Pairs.of((train, leaves[:100]), (held_out, leaves[100:130])), Context())
    score = ssim_of(attacker.reconstruct, store.rows(cut, "test"), leaves[130:160]).mean()
    assert score > 0.9
    assert store.unplaced(cut) == ""


def test_places_are_measured_once_and_kept(leaves, tmp_path, monkeypatch):
    layout = LAYOUTS["tokens shuffled"]
    first = store_of(Tokens(layout), leaves, tmp_path)
    cut = first.graph.cut("act")
    want = first.places(cut)
    monkeypatch.setattr("partopt.attackers.features.measure", None)
    again = store_of(Tokens(layout), leaves, tmp_path)
    assert again.places(again.graph.cut("act")) == want


class Pairwise(nn.Module):
    """Compares every image of a batch with every other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 5, 5), nn.Linear(1, 2)

    def forward(self, x):
        x = self.conv(x).flatten(1)
        return self.fc((x @ x.t()).sum(1, keepdim=True))


def test_a_cut_without_a_part_for_each_image_is_refused_and_spoils_no_other(leaves, tmp_path):
    store = store_of(Pairwise(), leaves, tmp_path)
    good, bad = store.graph.cut("conv"), store.graph.cut("matmul")
    assert len(store.rows(good, "test", [bad])) == 30
    with pytest.raises(AttackError, match="not exactly one dimension grows with the batch"):
        store.rows(bad, "test")


def test_a_head_that_mixes_its_batch_is_run_image_by_image(leaves, tmp_path):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), norm, nn.Flatten(), nn.Linear(8 * 24 * 24, 2))
    store = store_of(model, leaves, tmp_path)
    cut = store.graph.cut("1")
    stored = torch.from_numpy(store.rows(cut, "test").take(range(2))).float()
    unit = torch.from_numpy(leaves[130:132]).float() / 255
    alone = torch.cat([store.head(cut)(unit[i : i + 1]) for i in range(2)])
    assert torch.allclose(stored, alone, atol=2e-2)
    assert torch.allclose(stored, store.head(cut)(unit), atol=2e-2)


class Scattered(nn.Module):
    """Pixels in an order of their own, then an activation: no map has its values in that order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("order", torch.randperm(3 * 48 * 48))
        self.act, self.fc = nn.Tanh(), nn.Linear(3 * 48 * 48, 2)

    def forward(self, x):
        return self.fc(self.act(3 * x.flatten(1)[:, self.order]))


def test_values_in_no_order_of_a_map_need_another_attacker(leaves, tmp_path):
    """With fewer pairs than values, failing to learn where they belong proves nothing."""
    store = store_of(Scattered(), leaves, tmp_path)
    assert "6912 values for 100 training images" in store.unplaced(store.graph.cut("act"))
    dense = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 300), nn.Tanh(), nn.Linear(300, 2))
    store = store_of(dense, leaves, tmp_path)
    assert store.unplaced(store.graph.cut("1")) == "", "no value lies anywhere"


FILES = ["test.f16", "train.json", "stats.npz"]


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def half(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    path.write_bytes(b"")


def folder(path):
    path.unlink()
    (path / "inside").mkdir(parents=True)


def other_shape(path):
    path.write_text('{"shape": [1, 12, 16, 16]}')


def gone(path):
    path.unlink()


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_damaged_files_are_made_again(leaves, tmp_path, caplog):
    """Whatever a crash or a disk leaves: the same maps as before, and a line that says so."""
    first = store_of(Scaled(1.0), leaves, tmp_path)
    cut = first.graph.cut("conv")
    want = {p: first.rows(cut, p).take(range(30)) for p in ("train", "test")}
    place = first.shelf.place(cut)
    for damage in (zeros, half, empty, folder, other_shape, gone, flipped):
        for name in FILES:
            damage(place / name)
            again = store_of(Scaled(1.0), leaves, tmp_path)
            caplog.clear()
            again.head(cut)  # reads the statistics
            for part, maps in want.items():
                assert np.array_equal(again.rows(cut, part).take(range(30)), maps), (damage, name)
            if not name.endswith("json") or damage is not gone:
                assert caplog.text.count("made again") == 1, (damage, name)
            assert again.passes > 0


def test_a_file_in_place_of_the_folder_is_replaced(leaves, tmp_path):
    store = store_of(Scaled(1.0), leaves, tmp_path)
    place = store.shelf.place(store.graph.cut("conv"))
    place.parent.mkdir()
    place.write_text("no folder")
    assert len(store.rows(store.graph.cut("conv"), "test")) == 30


def test_values_that_are_not_finite_are_not_believed_whatever_the_digest(leaves, tmp_path):
    store = store_of(Scaled(1.0), leaves, tmp_path)
    cut = store.graph.cut("conv")
    want = store.rows(cut, "test").take(range(30))
    bad = want.copy()
    bad[3, 2, 1, 0] = np.nan
    (writer := store.shelf.writer(cut, "test")).add(bad)
    writer.keep()
    kept._verified.clear()
    assert np.array_equal(store.rows(cut, "test").take(range(30)), want)


class Masked(nn.Module):
    """One cut of infinities, of all images or of a few only, between finite ones."""

    def __init__(self, above: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 2)
        self.above = above

    def forward(self, x):
        x = self.a(x)
        bright = x.amax((1, 2, 3), keepdim=True) > self.above
        masked = x.masked_fill(bright, float("-inf"))
        return self.fc(self.b(masked.clamp(-5)).mean((2, 3)))


@pytest.mark.parametrize("often", [True, False])
def test_a_cut_that_is_not_finite_fails_alone(often, leaves, tmp_path):
    images = leaves[:, :, :48, :48]
    above = -1e9
    if not often:  # one test image alone, which the statistics do not see
        with torch.no_grad():
            unit = P.normalise(torch.from_numpy(images).float() / 255)
            highs = Masked(0).a(unit).amax((1, 2, 3))
        order = highs.argsort().numpy()
        images, above = images[order], float(highs.sort().values[-2:].mean())
    store = store_of(Masked(above), images, tmp_path)
    good = [store.graph.cut(n) for n in ("a", "b")]
    bad = store.graph.cut("masked_fill")
    for cut in good:
        assert len(store.rows(cut, "train", [bad, *good])) == 100
    passes = store.passes
    for _ in range(2):
        with pytest.raises(AttackError, match=r"'masked_fill' gives .* not finite \(-inf\)"):
            for part in ("train", "validation", "test"):
                store.rows(bad, part, good)
    assert store.passes <= passes + 4
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_cut_that_breaks_the_pass_fails_alone(tiny, leaves, tmp_path, monkeypatch):
    store = store_of(tiny, leaves, tmp_path)
    cuts = list(store.graph.cuts("all"))
    maps = FeatureStore._maps

    def broken(self, cuts, module, unit):
        found = maps(self, cuts, module, unit)
        if any(len(m.shape) == 4 and m.shape[1:] == (8, 48, 48) for m in found):
            raise AttackError("no place of a token can be told")
        return found

    monkeypatch.setattr(FeatureStore, "_maps", broken)
    assert len(store.rows(cuts[-1], "test", cuts)) == 30
    with pytest.raises(AttackError, match="no place"):
        store.rows(cuts[0], "test", cuts)


def test_what_is_in_use_is_not_evicted(tiny, leaves, tmp_path, caplog):
    """Two stores, as two processes are: locks of two open files exclude each other as well."""
    cuts = trace(tiny, torch.zeros(1, 3, 48, 48)).cuts("all")
    one = max(c.payload_bytes for c in cuts) // 2 * 160
    mine, theirs = (
        store_of(tiny, leaves, tmp_path, budget_bytes=int(one * 1.2), key=i) for i in range(2)
    )
    largest = max(cuts, key=lambda c: c.payload_bytes)
    rows = mine.rows(largest, "train")
    want = rows.take(range(100))
    theirs.rows(largest, "train", cuts)
    assert "over its" in caplog.text
    assert "in use" in caplog.text
    assert np.array_equal(rows.take(range(100)), want)
    del rows
    theirs.rows(largest, "train")
    other = store_of(tiny, leaves, tmp_path, budget_bytes=int(one * 1.2), key=2)
    other.rows(largest, "train")
    used = sum(f.stat().st_size for f in tmp_path.rglob("*.f16"))
    assert used <= one * 1.2


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half(leaves, tmp_path, monkeypatch):
    store = store_of(Scaled(1.0), leaves, tmp_path)
    cut = store.graph.cut("conv")
    add = kept.Writer.add

    def full(self, maps):
        if self._rows >= 32:
            with written_to(self._path):
                raise OSError(errno.ENOSPC, "No space left on device")
        add(self, maps)

    monkeypatch.setattr(kept.Writer, "add", full)
    with pytest.raises(StorageError, match="No space left"):
        store.rows(cut, "train")
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".f16", ".tmp")]
    monkeypatch.undo()
    assert len(store.rows(cut, "train")) == 100
