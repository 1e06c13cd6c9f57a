"""The published protocol beside ours: what it fixes, what it ignores, and that results say so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from partopt import cli
from partopt.config import Attack, SplitConfig
from partopt.errors import UsageError
from partopt.images.load import Split
from partopt.optimizer import protocols
from partopt.optimizer.budgets import BUDGETS, budget_of
from partopt.optimizer.check import CheckResult
from partopt.optimizer.find import find
from partopt.optimizer.gate import stored_evidence
from partopt.optimizer.policy import Policy
from partopt.optimizer.protocols import PUBLISHED_BUDGETS, protocol_of
from partopt.optimizer.rule import Evidence, judge
from partopt.reporting.report import verdict


@pytest.fixture
def small(monkeypatch):
    budget = replace(
        PUBLISHED_BUDGETS["quick"],
        split=Split(48, 8, 16),
        resolution=32,
        minimum_images=20,
        settings={"cgan": {"epochs": 1, "width": 16}},
    )
    monkeypatch.setitem(protocols.PUBLISHED_BUDGETS, "quick", budget)


def test_the_published_size_is_what_the_paper_says():
    for level in ("standard", "full"):
        budget = budget_of(level, budgets=PUBLISHED_BUDGETS)
        assert budget.split.train == 1000
        assert budget.resolution is None, "the model's own"
        assert [a.epochs for a in budget.panel(["cgan"]).values()] == [200]
    assert budget_of(None, "cuda", PUBLISHED_BUDGETS).name == "standard"
    paper = protocol_of("paper")
    assert (paper.threshold, paper.scale, paper.cuts) == (0.2, "raw", "paper")


@pytest.mark.parametrize(
    "given",
    [
        {"ssim": 0.3},
        {"scale": "corrected"},
        {"attackers": ["linear"]},
        {"attackers": ["cgan", "decoder"]},
        {"cuts": "clean"},
        {"cuts": "all"},
    ],
)
def test_what_it_fixes_cannot_be_changed(given):
    name = next(iter(given))
    with pytest.raises(UsageError, match=f"`{name}` got .*, but protocol paper means"):
        protocol_of("paper", **given)


def test_unknown_protocol():
    with pytest.raises(UsageError, match="`protocol` got 'origami'; use 'strict' or 'paper'"):
        protocol_of("origami")


def test_the_mean_alone_counts():
    attack = Attack(
        attacker="cgan",
        settings="",
        outcome="full budget",
        score=0.19,
        low=0.15,
        high=0.23,
        ssim_raw=0.19,
    )

    def safe(interval):
        found = {(0, "cgan"): Evidence.of(attack, "raw", interval)}
        return judge(["a"], ["cgan"], found, 0.2)[0].safe

    assert safe(interval=False)
    assert not safe(interval=True)


def test_a_failed_attack_still_leaks():
    failed = Attack(attacker="cgan", settings="", outcome="failed")
    found = {(0, "cgan"): Evidence.of(failed, "raw", False)}
    assert not judge(["a"], ["cgan"], found, 0.2)[0].safe


def test_a_run_says_every_choice(tiny_loaded, small, tmp_path):
    result = find(tiny_loaded, protocol="paper", cuts=["stem.1", "late.2"], repetitions=1)
    privacy = result.config.privacy
    assert (privacy.protocol, privacy.scale, privacy.threshold) == ("paper", "raw", 0.2)
    assert privacy.rule.startswith("published")
    assert privacy.evidence == "screening"
    assert [a.name for a in privacy.attackers] == ["cgan"]
    assert "epochs=1" in privacy.attackers[0].settings
    assert "l1_weight=0.0" in privacy.attackers[0].settings
    said = " ".join(result.config.warnings)
    assert "does not certify" in said
    assert "reduced: 48 of 1000 training images, 1 of 200 epochs" in said
    for row in result.config.cuts:
        assert [a.attacker for a in row.attacks] == ["cgan"]
        assert row.score == pytest.approx(row.ssim_raw)
        assert (row.status == "screened") == (row.suffix_score < 0.2)
        assert not row.safe, "the published rule certifies nothing"
    path = tmp_path / "a.json"
    result.config.write(path)
    assert SplitConfig.read(path).privacy.protocol == "paper"
    assert result.found
    assert "certifies nothing" in verdict(result.config)
    checked = CheckResult("a.json", "tiny", result.cut.name)
    terms = Policy(protocol="paper").terms(result.config, "cpu")
    safe = stored_evidence(checked, result.config, terms, result.cut.name)
    assert safe, "check applies the same rule"
    assert checked.verdict == "holds, screened, not certified"
    assert Policy().terms(result.config, "cpu").protocol.name == "strict", "a policy must say it"


def test_strict_is_the_default_and_minds_the_upper_end_of_the_interval(tiny_loaded, monkeypatch):
    """A mean below the threshold is not enough; the published rule asks no more."""
    few = replace(BUDGETS["quick"], split=Split(48, 8, 16), resolution=32, minimum_images=20)
    monkeypatch.setitem(BUDGETS, "quick", few)

    def found_at(threshold):
        result = find(
            tiny_loaded,
            ssim=threshold,
            scale="raw",
            cuts=["late.2"],
            attackers=["linear"],
            repetitions=1,
        )
        return result, result.config.cuts[0]

    above, row = found_at(0.99)
    assert above.found
    assert above.config.privacy.protocol == "strict"
    assert above.config.privacy.rule.startswith("safe only if")
    assert row.score < row.high
    between, same = found_at((row.score + row.high) / 2)
    assert same.score == row.score, "the same evidence"
    assert not between.found
    assert same.status == "undecided"


def test_the_published_points_are_wanted(tiny_loaded, small):
    with pytest.raises(UsageError, match="no cut points"):
        find(tiny_loaded, protocol="paper", repetitions=1)


def test_the_command_refuses_what_is_fixed(capsys):
    arguments = ["find", "--model", "resnet18", "--protocol", "paper", "--ssim", "0.3"]
    assert cli.run(arguments) == 2
    assert "`ssim` got 0.3, but protocol paper means 0.2" in capsys.readouterr().err
