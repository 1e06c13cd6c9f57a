"""Nothing below a folder that might be a picture is passed over without a word."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from partopt.errors import DataError, UsageError
from partopt.images import folders
from partopt.images.dead_leaves import dead_leaves
from partopt.images.load import Split, load_images, pictures_in
from partopt.preprocessing import Preprocessing

P = Preprocessing(16, 18)
SPLIT = Split(8, 2, 2)


@pytest.fixture
def store(tmp_path):
    """Twelve pictures in two folders, beside an empty folder ``data``."""
    for i, image in enumerate(dead_leaves(12, 16, seed=2)):
        path = tmp_path / "store" / ("cats", "dogs")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    (tmp_path / "data").mkdir()
    return tmp_path / "store"


def names(folder) -> list[str]:
    return [str(p.relative_to(folder)) for p in folders.search(folder).pictures]


def test_links_to_folders_are_followed(store):
    data = store.parent / "data"
    for kind in ("cats", "dogs"):
        (data / kind).symlink_to(store / kind)
    assert len(names(data)) == 12
    (store.parent / "whole").symlink_to(data)
    assert load_images(store.parent / "whole", P, SPLIT, minimum=4).split.total == 12


def test_circles_and_second_ways_count_once(store):
    (store / "again").symlink_to(store / "cats")
    (store / "cats" / "up").symlink_to("..")
    (store / "self").symlink_to(".")
    (store / "everything").symlink_to("/")
    (store / "0.png").symlink_to(store / "cats" / "0.png")
    (store / "dogs" / "zz.png").symlink_to(store / "cats" / "0.png")
    (store / "cats" / "zz.png").symlink_to(store / "dogs" / "1.png")
    found = names(store)
    assert len(found) == 12
    assert all(n.startswith(("cats/", "dogs/")) and "up" not in n for n in found)
    assert not any("zz" in n for n in found), "a file is known by its own place"
    assert load_images(store, P, SPLIT, minimum=4).skipped == []


def test_links_into_each_other_end(tmp_path):
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / one).mkdir()
        (tmp_path / one / "link").symlink_to(tmp_path / other)
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "x.png")
    assert names(tmp_path) == ["a/x.png"]


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".apng", ".tga", ".qoi", ".pgm"])
def test_all_suffixes_that_pillow_decodes_are_read(tmp_path, suffix):
    kinds = {".jpe": "JPEG", ".jfif": "JPEG", ".JPG": "JPEG", ".apng": "PNG"}
    image = Image.fromarray(dead_leaves(1, 16)[0].transpose(1, 2, 0))
    image = image.convert("L") if suffix == ".pgm" else image
    image.save(tmp_path / f"x{suffix}", kinds.get(suffix))
    assert pictures_in(tmp_path, P, 4).shape == (1, 3, 16, 16)


def test_other_suffixes_are_counted_and_named(store):
    for i in range(3):
        (store / f"{i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (store / "raw.nef").write_bytes(b"x")
    (store / "nameless").write_bytes(b"x")
    for quiet in (
        "list.txt",
        "labels.csv",
        "a.json",
        "Thumbs.db",
        ".DS_Store",
        "._1.jpg",
        "README",
    ):
        (store / quiet).write_bytes(b"x")
    images = load_images(store, P, SPLIT, minimum=4)
    assert images.split.total == 12
    (warning,) = [w for w in images.warnings if "not read" in w]
    assert "3 .heic files, 1 file without a suffix, 1 .nef file were not read" in warning
    assert "Pillow has no decoder here" in warning
    assert "3 .heic files (Pillow has no decoder here)" in images.skipped
    assert not any("Thumbs" in text or ".txt" in text for text in images.warnings + images.skipped)


def test_a_folder_of_other_files_says_which(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"0 usable images \(5 \.heic files were not read"):
        load_images(tmp_path, P, SPLIT, minimum=4)
    with pytest.raises(UsageError, match=r"5 \.heic files were not read"):
        pictures_in(tmp_path, P, 4)
    plain = tmp_path / "plain"
    plain.mkdir()
    with pytest.raises(DataError, match="it holds no other file"):
        load_images(plain, P, SPLIT, minimum=4)
    (plain / "a.txt").write_text("x")
    (plain / ".hidden").write_text("x")
    with pytest.raises(DataError, match=r"it holds 1 \.txt file, 1 hidden file\)"):
        load_images(plain, P, SPLIT, minimum=4)


def test_what_cannot_be_reached_is_named(store, monkeypatch):
    (store / "gone").symlink_to(store / "nowhere")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("dogs"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    images = load_images(store, P, SPLIT, minimum=4)
    told = "; ".join(images.warnings)
    assert "1 folders cannot be listed: dogs (Permission denied)" in told
    assert "1 links lead nowhere: gone" in told
    assert "dogs (Permission denied) (cannot be listed)" in images.skipped


def test_a_file_that_would_be_run_is_not_decoded(tmp_path):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    assert not {"EPS", "PDF", "WMF"} & set(folders.formats())
    assert ".eps" not in folders.suffixes()
    (tmp_path / "x.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    )
    with pytest.raises(UsageError, match="no picture that can be decoded"):
        pictures_in(tmp_path, P, 4)


def test_every_bad_picture_is_skipped_by_name(store):
    whole = (store / "cats" / "0.png").read_bytes()
    (store / "empty.png").write_bytes(b"")
    (store / "torn.png").write_bytes(whole[: len(whole) // 2])
    Image.new("F", (4, 4), 1e9).save(store / "float.tif")
    bomb = bytearray(whole)
    bomb[16:24] = (20_000).to_bytes(4, "big") * 2
    (store / "bomb.png").write_bytes(bomb)
    images = load_images(store, P, SPLIT, minimum=4)
    assert images.split.total == 12
    skipped = "; ".join(images.skipped)
    for name, why in (
        ("empty.png", "no picture"),
        ("torn.png", ""),
        ("float.tif", "float values"),
        ("bomb.png", ""),
    ):
        assert f"{name} (" in skipped
        assert why in skipped


def test_thin_pictures_are_used(store):
    Image.fromarray(np.tile(np.uint8([1, 99, 3]), (1, 8000, 1))).save(store / "thin.png")
    images = load_images(store, P, Split(9, 2, 2), minimum=4)
    assert "thin.png" in images.names


def test_names_that_are_no_utf8_are_printable(store):
    bad = os.fsdecode(b"caf\xe9\x1b[31m\xe2\x80\xae")
    folder = store.parent / bad
    os.rename(store, folder)
    os.rename(folder / "cats", folder / bad)
    (folder / f"{bad}.png").write_bytes(b"x")
    images = load_images(folder, P, SPLIT, minimum=4)
    texts = [images.source, *images.names, *images.skipped, *images.warnings]
    assert all(t.isprintable() for t in texts)
    assert any(r"caf\xe9\x1b[31m\u202e.png" in t for t in images.skipped)


def test_pictures_without_contrast_are_said(store):
    Image.fromarray(np.full((16, 16), 4000, np.uint16)).save(store / "dark.png")  # 12 bits in 16
    images = load_images(store, P, Split(9, 2, 2), minimum=4)
    assert any("1 of 13 images have hardly any contrast" in w for w in images.warnings)
