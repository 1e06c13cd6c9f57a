import pytest

from partopt.arguments.outputs import folder, writable
from partopt.errors import UsageError


def test_missing_folders_are_made_and_nothing_is_left_behind(tmp_path):
    path = tmp_path / "a" / "b" / "s.json"
    assert writable(path, "out") == path
    assert path.parent.is_dir()
    assert not list(path.parent.iterdir())
    path.write_text("kept")
    writable(path, "out")
    assert path.read_text() == "kept"


def test_what_cannot_be_written_names_the_argument(tmp_path):
    (tmp_path / "file").touch()
    for path, words in (
        (tmp_path, r"`out` got .* which is a folder"),
        (tmp_path / "file" / "s.json", r"`out` got .* cannot be written"),
        (tmp_path / ("n" * 300), "file name too long"),
    ):
        with pytest.raises(UsageError, match=words):
            writable(path, "out")
    with pytest.raises(UsageError, match="no regular file"):
        writable(type(tmp_path)("/dev/null"), "out")
    writable(type(tmp_path)("/dev/null"), "markdown", replaced=False)


def test_folders(tmp_path):
    (tmp_path / "file").touch()
    folder(tmp_path / "a" / "new", "out")
    assert not (tmp_path / "a" / "new").exists()
    folder(tmp_path, "out")
    with pytest.raises(UsageError, match=r"`out` got .* which is a file"):
        folder(tmp_path / "file", "out")
    with pytest.raises(UsageError, match="cannot be written"):
        folder(tmp_path / "file" / "in", "out")
