"""What one training does not say: the next seed, and more images than ours."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import optuna
import pytest
import torch

from partopt.attackers.features import FeatureStore
from partopt.attackers.linear import Linear
from partopt.attackers.training import mean_image
from partopt.config import Curve, SplitConfig
from partopt.errors import AttackError
from partopt.images.load import Split, load_images
from partopt.optimizer.attempt import Bench
from partopt.optimizer.budgets import BUDGETS
from partopt.optimizer.checked import CheckResult
from partopt.optimizer.confirm import confirm, curve_doubt
from partopt.optimizer.find import find
from partopt.optimizer.floor import floors_of
from partopt.optimizer.gate import stored_evidence
from partopt.optimizer.limits import Limits
from partopt.optimizer.policy import Policy, laxer
from partopt.optimizer.search import Course, Search
from partopt.profilers.base import CutLatency, Duration
from partopt.reporting.people import more_images

STORAGE = optuna.storages.InMemoryStorage


@dataclass(repr=False)
class Learner(Linear):
    """Shows so much of the linear picture as its images and its seed have taught it."""

    name: ClassVar[str] = "learner"
    rank: ClassVar[int] = 2

    max_cells: int = 2000
    epochs: int = 1
    base: float = 0.0
    slope: float = 0.0  # for each doubling of 16 images
    jitter: tuple[float, ...] = (0.0,)
    breaks_at: int = 0
    share: float = field(default=0.0, init=False)
    seeds: ClassVar[list[int]] = []

    def fit(self, pairs, context):
        if len(pairs.features) == self.breaks_at:
            raise AttackError("out of luck")
        self.share, self.mean = 1.0, mean_image(pairs.images)
        super().fit(pairs, context)
        if context.seed not in self.seeds:
            self.seeds.append(context.seed)
        off = self.jitter[self.seeds.index(context.seed) % len(self.jitter)]
        self.share = self.base + self.slope * math.log2(len(pairs.features) / 16) + off

    def reconstruct(self, features):
        rebuilt = super().reconstruct(features)
        return (self.share * rebuilt + (1 - self.share) * self.mean).clamp(0, 1)


@pytest.fixture
def make_search(tiny_loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(Learner, "seeds", [])
    graph = tiny_loaded.trace()
    cuts = graph.cuts("all")[1:3]
    images = load_images(None, tiny_loaded.preprocessing, Split(64, 8, 24))
    store = FeatureStore(tmp_path / "f", graph, tiny_loaded.preprocessing, images, "w")
    same = Duration(1.0, 0.0, "measured", "native")
    latency = CutLatency(enclave=same, handoff=same, accelerator=same, total=same)
    bench = Bench(store=store, floors=floors_of(images, 32, (32,), 0), seed=3)

    def make(threshold, storage=None, attack=True, beside=None, **settings):
        course = Course(threshold=threshold, attack=attack, limits=Limits(copies=False))
        panel = {"learner": Learner(**settings), **(beside or {})}
        return Search(cuts, [latency] * 2, bench, panel, course, storage or STORAGE())

    return make


def scores(search, index=1):
    attack = search.outcome.attacks[index, "learner"]
    return attack.score, attack.low, attack.high


def test_an_attack_that_still_learns_leaves_its_cut_undecided(make_search):
    """Below the threshold with our images, above it with ten times as many."""
    flat = make_search(0.99, base=0.2)
    flat.run()
    confirm(flat, None)
    reached = flat.outcome.curves[flat.answer()]
    assert reached.high < 0.99
    assert [p.images for p in reached.points] == [16, 32, 64]
    assert reached.images == 640
    rising = make_search(0.99, base=0.02, slope=0.12)
    rising.run()
    highest = max(scores(rising, 0)[2], scores(rising, 1)[2])
    rising = make_search(highest + 0.08, base=0.02, slope=0.12)
    rising.run()
    assert rising.answer() is not None
    confirm(rising, None)
    assert rising.answer() is None, "the curve at each cut crosses the threshold"
    last = rising.verdicts()[1]
    assert last.status == "undecided"
    assert "still learns" in last.reason
    assert "640" in last.reason
    assert "would settle it" in last.reason
    few = make_search(highest + 0.08, base=0.02, slope=0.12)
    few.run()
    confirm(few, 64)
    assert few.answer() is not None, "this adversary has no more than we"


def test_other_seeds_widen_the_interval_and_may_cost_the_cut(make_search):
    calm = make_search(0.99, base=0.2)
    calm.run()
    before = scores(calm)
    confirm(calm, 64)
    assert scores(calm) == before, "seeds that agree change nothing"
    wild = make_search(0.99, base=0.2, jitter=(0.0, 0.05, -0.03))
    wild.run()
    index = wild.answer()
    single = scores(wild, index)
    confirm(wild, 64)
    assert wild.answer() == index
    attack = wild.outcome.attacks[index, "learner"]
    assert len(attack.trainings) == 3
    assert attack.score == pytest.approx(max(attack.trainings), abs=1e-5)
    assert attack.score >= single[0]
    assert attack.high > single[2] + 0.02
    between = make_search((single[2] + attack.high) / 2, base=0.2, jitter=(0.0, 0.05, -0.03))
    between.run()
    assert between.answer() is not None
    confirm(between, 64)
    assert between.answer() is None


def test_trainings_are_stored_and_made_once(make_search):
    storage = STORAGE()
    first = make_search(0.99, storage, base=0.2, slope=0.02)
    first.run()
    ran = confirm(first, None)
    assert sum(s.outcome.run for s in ran) >= 4
    again = make_search(0.99, storage, base=0.2, slope=0.02)
    again.run()
    assert sum(s.outcome.run for s in confirm(again, None)) == 0
    assert again.outcome.curves == first.outcome.curves
    assert again.outcome.attacks == first.outcome.attacks


def test_a_training_that_fails_or_is_missing_leaves_the_cut_undecided(make_search):
    broken = make_search(0.99, base=0.2, breaks_at=16)
    broken.run()
    assert broken.answer() is not None
    confirm(broken, None)
    assert broken.answer() is None
    assert "16 images failed: out of luck" in broken.verdicts()[1].reason
    storage = STORAGE()
    make_search(0.99, storage, base=0.2).run()
    only_stored = make_search(0.99, storage, attack=False, base=0.2)
    only_stored.run()
    assert only_stored.answer() is not None
    confirm(only_stored, None)
    assert only_stored.answer() is None
    assert "is missing" in only_stored.verdicts()[1].reason


def test_the_lead_of_another_attacker_is_part_of_the_curve(make_search):
    alone = make_search(0.99, base=0.1)
    beside = make_search(0.99, base=0.1, beside={"linear": Linear(max_cells=2000)})
    for search in (alone, beside):
        search.run()
    assert beside.answer() == alone.answer()
    index = beside.answer()
    strongest = beside.outcome.attacks[index, "linear"].score
    assert strongest > beside.outcome.attacks[index, "learner"].score + 0.05
    for search in (alone, beside):
        confirm(search, None)
    curve = beside.outcome.curves[index]
    assert curve.attacker == "learner", "who does not train does not learn more"
    assert curve.points[-1].value == pytest.approx(strongest, abs=1e-4)
    assert curve.high > alone.outcome.curves[index].high + 0.05


def test_a_stored_curve_counts_by_its_bound(make_search):
    search = make_search(0.99, base=0.2)
    search.run()
    confirm(search, None)
    curve = search.outcome.curves[search.answer()]
    assert curve_doubt(curve, curve.high + 0.01) is None
    assert curve_doubt(curve, curve.high) is not None
    assert curve_doubt(None, 0.9) is not None
    data = curve.model_dump()
    with pytest.raises(ValueError, match="below what was measured"):
        Curve.model_validate({**data, "high": 0.0})


def test_fewer_images_are_gone_over_as_often(make_search, monkeypatch):
    seen = []
    fit = Learner.fit

    def noted(self, pairs, context):
        seen.append((len(pairs.features), self.epochs))
        fit(self, pairs, context)

    monkeypatch.setattr(Learner, "fit", noted)
    search = make_search(0.99, base=0.2)
    search.run()
    confirm(search, None)
    assert {(16, 4), (32, 2), (64, 1)} == set(seen)
    assert replace(search.panel["learner"], epochs=3).longer(2).epochs == 6
    assert torch.isfinite(torch.tensor(scores(search))).all()


def test_a_run_shows_its_curve_and_a_check_holds_it_to_that(tiny_loaded, monkeypatch):
    few = replace(BUDGETS["quick"], split=Split(48, 8, 16), resolution=32, minimum_images=20)
    few = replace(few, settings={"linear": {"max_cells": 2000}})
    monkeypatch.setitem(BUDGETS, "quick", few)
    asked = {"cuts": ["late.2"], "ssim": 0.95, "repetitions": 1}
    found = find(tiny_loaded, **asked, adversary_images=300)
    config, (row,) = found.config, found.config.cuts
    assert (config.privacy.adversary_images, row.curve.images) == (300, 300)
    assert "at most" in more_images(config)
    assert SplitConfig.parse(config.to_json().encode()) == config
    assert find(tiny_loaded, **asked).config.cuts[0].curve is None, "a screening asks not by itself"

    def believed(changed, **policy):
        result = CheckResult("a.json", "tiny", "late.2")
        terms = Policy(ssim=0.95, **policy).terms(changed, "cpu")
        return stored_evidence(result, changed, terms, "late.2")

    assert believed(config)
    raised = config.model_copy(deep=True)
    raised.cuts[0].curve.high = 0.96
    assert not believed(raised)
    assert not believed(config, worst_retrieval=0.01)
    terms = Policy(ssim=0.95, adversary_images=4000).terms(config, "cpu")
    reasons = laxer(config, terms, found.cuts, found.model)
    assert "made with adversary_images 300, the policy says 4000" in reasons
