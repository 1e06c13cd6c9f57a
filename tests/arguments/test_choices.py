import re
from typing import Literal, get_args

import pytest

from partopt import cli
from partopt.arguments import choices
from partopt.arguments.choices import BudgetName, EnclaveName, known_names, one_of
from partopt.errors import UsageError, nearest

COMMANDS = [c.name or c.callback.__name__ for c in cli.app.registered_commands]
COMMANDS += [
    c.name or c.callback.__name__
    for g in cli.app.registered_groups
    for c in g.typer_instance.registered_commands
]


def test_a_word_of_a_closed_set():
    one_of("budget", "quick", BudgetName)
    one_of("budget", None, BudgetName)
    with pytest.raises(UsageError, match=r"`a` got 'z'; use 'x' or 'y'$"):
        one_of("a", "z", Literal["x", "y"])


def test_names_of_arguments():
    assert known_names("f", {"a": 1, "b": None}, {"a", "b"}) == {"a": 1}
    with pytest.raises(UsageError, match=r"`weight` is no argument of f \(nearest: weights\)"):
        known_names("f", {"weight": None}, {"weights"})
    with pytest.raises(UsageError, match="`strict` is no argument of f"):
        known_names("f", {"strict": True}, {"weights"})


def test_the_nearest_name_whatever_the_case():
    assert nearest("ResNet5", ["resnet50", "vgg16"]) == " (nearest: resnet50)"
    assert nearest("nope", ["resnet50", "vgg16"]) == ""
    assert "resnet50" in nearest("nope", ["resnet50", "vgg16"], least=0)


def told(capsys, *arguments: str) -> tuple[int, str]:
    code = cli.run(list(arguments))
    return code, " ".join("".join(capsys.readouterr()).split())


def test_help_lists_every_choice(capsys):
    code, text = told(capsys, "find", "--help")
    assert code == 0
    for name in ("ProtocolName", "ScaleName", "BudgetName", "EnclaveName", "AcceleratorName"):
        words = get_args(getattr(choices, name))
        assert re.search(r"[\[<]" + re.escape("|".join(words)) + r"[\]>]", text), name
    assert set(get_args(EnclaveName)) >= {"auto", "native"}
    assert "--strict" not in text


def test_no_summary_is_cut_off_at_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split(maxsplit=1) for line in lines[lines.index("Commands:") + 1 :] if line]
    assert sorted(name for name, _ in listed) == sorted(name.replace("_", "-") for name in COMMANDS)
    assert [name for name, text in listed if not text.endswith(".") or text.endswith("...")] == []
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("find", "--model", "x", "--budget", "ful"), "`budget` got 'ful' (nearest: full); use"),
        (("find", "--model", "x", "--scale", "log"), "`scale` got 'log'; use corrected, raw"),
        (("report", "a.json", "--format", "pdf"), "`format` got 'pdf'"),
        (("serve", "b", "--only", "both"), "`only` got 'both'; use head, tail"),
        (("find", "--model", "x", "--strict"), "`strict` is called --require-weights now"),
        (("attack", "--model", "x", "--cut", "y", "--strict"), "--require-weights now"),
        (("reproduce", "--strict"), "--require-weights now"),
        (("strength", "--model", "x", "--cut", "y", "--strict"), "--require-weights now"),
        (("find", "--model", "nope"), "`model` got 'nope', which torchvision does not have (nea"),
    ],
)
def test_wrong_words_of_the_command_line(capsys, arguments, said):
    code, text = told(capsys, *arguments)
    assert code == 2
    assert said in text
