import json
from dataclasses import replace

import pytest

from partopt.attackers.base import Attacker
from partopt.attackers.linear import Linear
from partopt.attackers.panel import make
from partopt.errors import AttackError, ConfigError, UsageError
from partopt.optimizer.budgets import BUDGETS
from partopt.optimizer.jobs import JobOrder
from partopt.optimizer.recipes import made_of, recipe
from partopt.optimizer.terms import AttackTerms

ORDER = JobOrder(
    key="0" * 64,
    cut="a",
    label="linear",
    recipe=recipe(make("linear")),
    terms=AttackTerms(seed=1, threshold=0.2, leaks_from=0.2),
    threads=1,
    also=["b"],
    pictures=True,
    value=1.0,
)


@pytest.mark.parametrize("budget", list(BUDGETS))
def test_every_attacker_of_every_budget_can_be_told(budget):
    names = [*BUDGETS[budget].settings, *BUDGETS[budget].others]
    for attacker in BUDGETS[budget].panel(names).values():
        again = made_of(json.loads(json.dumps(recipe(attacker))))
        assert repr(again) == repr(attacker)
        for other in (attacker.safer(), attacker.longer(2)):
            assert other is None or repr(made_of(recipe(other))) == repr(other)


class Unnamed(Linear):
    """Goes by another attacker's name."""


def test_what_its_name_does_not_lead_back_to_is_refused():
    with pytest.raises(AttackError, match="give it a name of its own"):
        recipe(Unnamed())
    with pytest.raises(AttackError, match="type bytes"):
        recipe(replace(make("linear"), ridges=b"1"))


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"attacker": "linear"},
        {"attacker": 3, "settings": {}},
        {"attacker": "linear", "settings": []},
        {"attacker": "linear", "settings": {}, "more": 1},
        {"attacker": "linear", "settings": {"ridges": {"code": "x"}}},
    ],
)
def test_what_is_no_recipe_makes_nothing(value):
    with pytest.raises(ConfigError):
        made_of(value)


def test_names_are_looked_up_and_nothing_else():
    with pytest.raises(UsageError, match="`attackers` got 'os:system'"):
        made_of({"attacker": "os:system", "settings": {}})
    with pytest.raises(UsageError, match="lacks"):
        made_of({"attacker": "linear", "settings": {"nope": 1}})
    deep = {"attacker": "decoder", "settings": {}}
    for _ in range(12):
        deep = {"attacker": "decoder", "settings": {"linear": deep}}
    with pytest.raises(ConfigError):
        made_of(deep)


def test_an_order_comes_back_as_it_was():
    again = JobOrder.of_dict(json.loads(json.dumps(ORDER.as_dict())))
    assert again.as_dict() == ORDER.as_dict()
    assert isinstance(again.attacker(), Attacker)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key", "short"),
        ("cut", 3),
        ("threads", 0),
        ("threads", 10**6),
        ("threads", True),
        ("also", "b"),
        ("pictures", "yes"),
        ("value", float("nan")),
        ("recipe", "linear"),
        ("more", 1),
        ("terms", None),
        ("terms", {"seed": -1, "threshold": 0.2}),
        ("terms", {"seed": 1, "threshold": "x"}),
        ("terms", {"seed": 1, "threshold": 0.2, "ceiling": 10**9}),
        ("terms", {"seed": 1, "threshold": 0.2, "images": 0}),
        ("terms", {"seed": 1, "threshold": 0.2, "more": 0}),
    ],
)
def test_an_order_out_of_range_is_refused(name, value):
    with pytest.raises(ConfigError, match="a job is not one of this version's"):
        JobOrder.of_dict({**ORDER.as_dict(), name: value})
