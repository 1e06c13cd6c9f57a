import errno
import json
import os
import threading

import pytest

from partopt.cache import locked, read_sealed, refusal, write_sealed, written_whole
from partopt.errors import StorageError


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced = []
    path = tmp_path / "x"

    def fsync(handle):
        synced.append((os.readlink(f"/proc/self/fd/{handle}"), path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with written_whole(path) as temporary:
        temporary.write_text("whole")
    assert synced == [(str(temporary), False), (str(tmp_path), True)]
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_what_a_disk_refuses_is_one_sentence_and_leaves_the_old_file(tmp_path, monkeypatch, code):
    path = tmp_path / "x"
    path.write_text("old")

    def fsync(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match="x' cannot be written") as caught:
        with written_whole(path) as temporary:
            temporary.write_text("new")
    assert ("make room" in str(caught.value)) == (code in (errno.ENOSPC, errno.EDQUOT))
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["x"])


def test_a_folder_of_that_name_is_one_sentence(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(StorageError, match="names a folder"), written_whole(tmp_path / "x") as t:
        t.write_text("new")


def test_two_threads_write_one_file(tmp_path):
    def write(text):
        for _ in range(20):
            with written_whole(tmp_path / "x") as temporary:
                temporary.write_text(text * 1000)

    threads = [threading.Thread(target=write, args=(t,)) for t in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set((tmp_path / "x").read_text()) in ({"a"}, {"b"})


VALUE = {"shape": [1, 2], "scale": 0.1 + 0.2}


def test_sealed_values_come_back(tmp_path):
    path = tmp_path / "x.json"
    assert read_sealed(path) is None
    write_sealed(path, VALUE)
    assert read_sealed(path) == VALUE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0" * 90,
        "{",
        "[1, 2]",
        "null",
        '{"shape": [1, 2]}',
        "[" * 5000,
        json.dumps({"sha256": "0" * 64, "value": VALUE}),
        '{"sha256": 1, "value": 2, "more": 3}',
    ],
)
def test_anything_else_is_not_believed(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"it (is|has|cannot)|its digest"):
        read_sealed(tmp_path / "x.json")


def test_another_value_under_the_same_digest_is_not_believed(tmp_path):
    path = tmp_path / "x.json"
    write_sealed(path, VALUE)
    path.write_text(path.read_text().replace("[1, 2]", "[2, 1]"))
    with pytest.raises(ValueError, match="another content"):
        read_sealed(path)


def test_a_folder_makes_way_for_a_cached_value(tmp_path):
    (tmp_path / "x.json" / "inner").mkdir(parents=True)
    with pytest.raises(ValueError, match="no file"):
        read_sealed(tmp_path / "x.json")
    write_sealed(tmp_path / "x.json", VALUE)
    assert read_sealed(tmp_path / "x.json") == VALUE


def test_one_at_a_time(tmp_path):
    told = threading.Event()
    order = []

    def second():
        with locked(tmp_path / "lock", told.set):
            order.append("second")

    with locked(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        assert told.wait(20)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_refusals_name_the_path_and_what_to_do():
    full = refusal("a/b", OSError(errno.ENOSPC, "No space left on device"))
    assert "'a/b'" in full
    assert "make room" in full
    assert "writable" in refusal("a/b", OSError(errno.EACCES, "Permission denied"))
