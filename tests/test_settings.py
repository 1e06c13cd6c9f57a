from pathlib import Path

import pytest

from partopt.errors import ConfigError
from partopt.settings import discover, for_find, read


def write(tmp_path: Path, text: str, name: str = "partopt.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_defaults_reach_every_model_and_paths_follow_the_file(tmp_path):
    path = write(
        tmp_path,
        'data = "photos"\nssim = 0.3\n[[models]]\nmodel = "a"\nweights = "w.pth"\n'
        '[[models]]\nmodel = "b"\nssim = 0.1\nweights = "none"\n',
    )
    a, b = read(path).entries()
    assert (a.ssim, b.ssim) == (0.3, 0.1)
    assert a.data == str(tmp_path / "photos")
    assert a.weights == str(tmp_path / "w.pth")
    assert b.weights == "none"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("treshold = 1", "unknown key `treshold`"),
        ("budgte = 'quick'", r"nearest: budget"),
        ('[[models]]\nmodel = "a"\nweigths = "x"', r"unknown key `models.0.weigths` \(nearest: w"),
        ("ssim = 3", "wrong at `ssim`"),
        ("ssim = ", "no TOML"),
        ('budget = "huge"', "wrong at `budget`"),
        ("seed = -1", "wrong at `seed`"),
        ('attackers = "linear"', "wrong at `attackers`"),
        ('threads = "many"', "wrong at `threads`"),
        ("models = 3", "wrong at `models`"),
        ("strict = true", "the key `strict`, which is called `require_weights` now"),
        ('enclave = "sgx"', "wrong at `enclave`"),
    ],
)
def test_problems_name_the_key(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read(write(tmp_path, text))


@pytest.mark.parametrize("text", ["tool = 3", "[tool]\npartopt = 3"])
def test_a_pyproject_of_wrong_types(tmp_path, text):
    path = write(tmp_path, text, "pyproject.toml")
    if "partopt" in text:
        with pytest.raises(ConfigError, match="wrong"):
            read(path)
    else:
        assert read(path).models == []


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="do not exist"):
        read(tmp_path / "none.toml")


def test_pyproject_and_what_the_command_line_says_wins(tmp_path, monkeypatch):
    write(tmp_path, '[project]\nname = "x"\n', "pyproject.toml")
    assert discover(tmp_path) is None
    write(tmp_path, '[tool.partopt]\nssim = 0.4\nbudget = "full"\n', "pyproject.toml")
    monkeypatch.chdir(tmp_path)
    given = {"ssim": 0.1, "budget": None, "weights": None}
    assert for_find("any", given, None) == {"ssim": 0.1, "budget": "full"}


def test_what_is_under_test_lies_in_a_folder_of_its_own(tmp_path):
    path = write(
        tmp_path,
        'data = "photos"\n[[models]]\nmodel = "a"\nweights = "w.pth"\nsplit = "s/a.split.json"\n',
    )
    (entry,) = read(path, Path("change")).entries()
    assert entry.data == str(tmp_path / "photos")
    assert (entry.weights, entry.split) == ("change/w.pth", "change/s/a.split.json")


def test_find_reads_the_terms_that_check_holds_it_to(tmp_path):
    path = write(tmp_path, 'protocol = "paper"\ncuts = "all"\nmax_cuts = 7\ntune = 2\n')
    given = dict.fromkeys(("protocol", "cuts", "max_cuts", "tune"))
    found = for_find("any", given, path)
    assert found == {"protocol": "paper", "cuts": "all", "max_cuts": 7, "tune": 2}
