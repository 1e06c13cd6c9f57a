"""What comes from files reaches people as text, never as instructions to a terminal."""

from __future__ import annotations

import io
import json
import os

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from partopt.commands.console import Plain
from partopt.printable import each, encodable, printable

EVIL = "a\x1b[2Jb\x9b31mc\u202ed\rq\x07" + os.fsdecode(b"\xff")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, grün 画像", "plain, grün 画像"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\x9b", r"\x9b"),
        ("\u202e\u2066\u200f", r"\u202e\u2066\u200f"),
        (os.fsdecode(b"\xe9.png"), r"\xe9.png"),
        ("\ud800", r"\ud800"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\u2028", r"\u2028"),
    ],
)
def test_what_has_no_glyph_is_an_escape(text, shown):
    assert printable(text) == shown
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)
    printable(text).encode()


def test_only_what_cannot_be_encoded_is_changed():
    assert encodable("a\x1b\nü") == "a\x1b\nü"
    assert encodable(os.fsdecode(b"\xff")) == r"\xff"
    assert each({"a\x1b": ["\x1b", 1, ("\x1b", None)]}, printable) == {
        r"a\x1b": [r"\x1b", 1, (r"\x1b", None)]
    }


def test_nothing_steers_the_terminal():
    table = Table(EVIL)
    table.add_row(EVIL, f"[bold]{EVIL}[/]")
    for what in (EVIL, Text(EVIL), table, Panel(EVIL, title=EVIL)):
        console, file = Plain(), io.StringIO()
        console.file = file
        console.print(what)
        text = file.getvalue()
        assert text.replace("\n", "").isprintable(), what
        text.encode()
        assert r"\x1b" in text


def test_colours_of_our_own_stay():
    console, file = Plain(), io.StringIO()
    console.file = file
    console._force_terminal = True
    console._color_system = 1
    console.print(Text(EVIL, style="red"))
    assert "\x1b[31m" in file.getvalue()
    assert "\x1b[2J" not in file.getvalue()


def test_brackets_and_colons_are_text(capsys):
    console = Plain()
    console.print("[photos] [/x] :smile:", highlight=False)
    assert capsys.readouterr().out == "[photos] [/x] :smile:\n"


def test_errors_of_the_command_line_are_printable(capsys, tmp_path):
    from partopt import cli

    assert cli.run(["report", str(tmp_path / EVIL)]) == 1
    said = capsys.readouterr().err
    assert said.replace("\n", "").isprintable()


def test_a_result_holds_only_what_can_be_encoded():
    from partopt.config import Tensor

    made = Tensor(name=EVIL, shape=[1], dtype="float32", bytes=4)
    made.name.encode()
    assert "\x1b" in made.name, "names are kept as they are wherever that is possible"
    json.dumps(made.model_dump(), ensure_ascii=False).encode()
