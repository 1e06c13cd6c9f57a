"""Attack strength by data and epochs: the same test images, more training data, warnings."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from partopt import cli
from partopt.attackers.rows import Rows
from partopt.attackers.scoring import Score
from partopt.errors import UsageError
from partopt.images.load import Split
from partopt.optimizer.budgets import BUDGETS
from partopt.studies.strength import Cell, Strength, strength

NET = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), nn.Conv2d(8, 12, 4, 4), nn.Tanh(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))
"""
SMALL = {
    "linear": {"max_cells": 4000},
    "decoder": {"epochs": 3, "width": 16, "narrowest": 8, "blocks": 1, "batch": 8, "patience": 0},
}


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    (tmp_path / "strengthnet.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    budget = replace(
        BUDGETS["quick"], split=Split(64, 8, 12), resolution=32, minimum_images=20, settings=SMALL
    )
    monkeypatch.setitem(BUDGETS, "quick", budget)
    return {"model": "strengthnet:net", "cut": "1", "weights": "none", "input_size": 32}


def test_the_grid(arguments):
    found = strength(**arguments, images=[16, 64])
    grid = [(c.attacker, c.images, c.epochs) for c in found.cells]
    assert grid == [
        ("linear", 16, None),
        ("linear", 64, None),
        ("decoder", 16, 1),
        ("decoder", 64, 1),
        ("decoder", 16, 3),
        ("decoder", 64, 3),
    ]
    by_place = {(a, n, e): c.score.raw for (a, n, e), c in zip(grid, found.cells, strict=True)}
    assert by_place["linear", 64, None] > by_place["linear", 16, None]
    assert by_place["decoder", 64, 3] > by_place["decoder", 16, 1]
    again = strength(**arguments, images=[64], attackers=["linear"])
    assert again.cells[0].score == found.cells[1].score, "one seed, one score"


def grown(*values):
    scores = [Score(v, v, v, v, v - 0.01, v + 0.01, "corrected") for v in values]
    cells = [Cell("decoder", 100 * 2**i, 3, s, 1.0) for i, s in enumerate(scores)]
    return Strength("m", "w", "c", "d", 96, 0.25, 0.2, cells)


def test_still_rising_is_said():
    assert grown(0.1, 0.15, 0.155).rising == []
    (rising,) = grown(0.1, 0.12, 0.15).rising
    assert (
        "still rising with images: 0.12 at 200, 0.15 at 400; as much again would be 0.18" in rising
    )
    assert "leak" not in rising
    (rising,) = grown(0.1, 0.12, 0.17).rising
    assert rising.endswith("0.22 and would leak")


def test_wrong_numbers(arguments):
    for wrong in ([8], [32, 65], []):
        with pytest.raises(UsageError, match=r"`images` got .* 16 to 64"):
            strength(**arguments, images=wrong)
    with pytest.raises(UsageError, match=r"`epochs` got"):
        strength(**arguments, epochs=[0])


def test_the_command(arguments, tmp_path, capsys):
    options = ["--model", "strengthnet:net", "--cut", "1", "--weights", "none"]
    options += ["--input-size", "32", "--images", "16,32", "--attackers", "linear"]
    page = tmp_path / "a.png"
    assert cli.run(["strength", *options, "--chart", str(page), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [c["images"] for c in data["cells"]] == [16, 32]
    assert "rising" in data
    with Image.open(page) as opened:
        assert opened.width > 600
    assert cli.run(["strength", *options]) == 0
    assert "score above the floor" in capsys.readouterr().out
    assert cli.run(["strength", *options, "--chart", "a.pdf"]) == 2
    assert "`chart` got 'a.pdf'" in capsys.readouterr().err
    assert cli.run(["strength", *options, "--epochs", "many"]) == 2
    assert "`epochs` got 'many'; use whole numbers" in capsys.readouterr().err


def test_the_first_rows(tmp_path):
    array = np.arange(24, dtype=np.float16).reshape(6, 4)
    array.tofile(tmp_path / "a.f16")
    rows = Rows([array[:2], (tmp_path / "a.f16", (6, 4), "float16")])
    assert len(rows.first(5)) == 5
    assert np.array_equal(rows.first(5).take(range(5)), np.concatenate([array[:2], array[:3]]))
    assert len(rows.first(1)) == 1
    assert len(rows.first(99)) == 8
