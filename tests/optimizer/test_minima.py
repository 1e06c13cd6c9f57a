from dataclasses import replace

from partopt.attackers.scoring import Score
from partopt.images.load import Split
from partopt.optimizer.budgets import BUDGETS, evidence_of
from partopt.optimizer.find import find
from partopt.optimizer.minima import grant_of
from partopt.optimizer.protocols import PUBLISHED_BUDGETS
from partopt.optimizer.rule import Evidence, Grant, judge


def granted(level: str, images: int, resolution: int = 224, **epochs: int) -> Grant:
    budget = BUDGETS[level]
    panel = budget.panel()
    for name, count in epochs.items():
        panel[name] = replace(panel[name], epochs=count)
    split = budget.split.shrunk_to(images)
    evidence = evidence_of(budget, panel, split.total, resolution)
    return grant_of(split, panel, evidence, BUDGETS)


def test_each_status_has_its_minimum_and_names_the_number():
    few = granted("quick", 110)
    assert few.status == "undecided"
    assert "71 of 256 training images" in few.shortfall
    assert "400 images" in few.shortfall
    assert granted("quick", 399).status == "undecided"
    assert granted("quick", 400, 96).status == "screened"
    assert "1400 images" in granted("quick", 400, 96).shortfall
    assert granted("standard", 399).status == "undecided"
    assert granted("standard", 1399).status == "screened"
    assert granted("standard", 1400).status == "safe"
    assert granted("full", 5000) == Grant()


def test_fewer_epochs_are_less_too():
    assert granted("quick", 400, 96, decoder=2).status == "undecided"
    assert "2 of 3 epochs of decoder" in granted("quick", 400, 96, decoder=2).shortfall
    assert granted("standard", 1400, decoder=4).status == "screened"
    assert granted("full", 5000, decoder=5).status == "safe", "it had all of standard"
    panel = BUDGETS["full"].panel()
    panel["decoder"] = replace(panel["decoder"], epochs=8)
    assert evidence_of(BUDGETS["full"], panel, 5000, 224) == "standard"


def test_the_published_protocol_screens_at_most():
    budget = PUBLISHED_BUDGETS["standard"]
    evidence = evidence_of(budget, budget.panel(), budget.split.total, 224)
    found = grant_of(budget.split, budget.panel(), evidence, PUBLISHED_BUDGETS)
    assert found.status == "screened"
    assert "--protocol strict" in found.shortfall


def test_a_grant_lowers_what_passes_and_nothing_else():
    found = {
        (i, "linear"): Evidence(Score(v, v, v, v, v - 0.01, v + 0.01, "corrected"), True)
        for i, v in enumerate([0.5, 0.195, 0.1, 0.05])
    }
    names = ["a", "b", "c", "d"]

    def statuses(grant):
        return [v.status for v in judge(names, ["linear"], found, 0.2, grant)]

    assert statuses(None) == ["leaks", "undecided", "safe", "safe"]
    assert statuses(Grant("screened", "why")) == ["leaks", "undecided", "screened", "screened"]
    few = Grant("undecided", "the run had 7 of 256 training images")
    assert statuses(few) == ["leaks", "undecided", "undecided", "undecided"]
    verdict = judge(names, ["linear"], found, 0.2, few)[2]
    assert not verdict.safe
    assert "7 of 256" in verdict.reason


def test_too_few_photos_decide_nothing(tiny_loaded, photo_folder, monkeypatch):
    small = replace(
        BUDGETS["quick"],
        split=Split(64, 16, 24),
        resolution=32,
        minimum_images=20,
        settings={"linear": {"max_cells": 4000}},
    )
    monkeypatch.setitem(BUDGETS, "quick", small)
    result = find(tiny_loaded, data=photo_folder, cuts=["late.2", "pool"], repetitions=1)
    assert not result.found
    row = result.config.cuts[-1]
    assert (row.status, row.safe) == ("undecided", False)
    assert "of 64 training images" in row.reason
    assert "104 images" in result.config.warnings[0]
