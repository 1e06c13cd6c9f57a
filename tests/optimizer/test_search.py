import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import optuna
import pytest
import torch

from partopt.attackers import panel as registry
from partopt.attackers.decoder import Decoder
from partopt.attackers.features import FeatureStore
from partopt.attackers.linear import Linear
from partopt.attackers.panel import make
from partopt.datasets import Split, load_images
from partopt.errors import AttackError, ConfigError, UsageError
from partopt.optimizer import search as search_module
from partopt.optimizer.budgets import BUDGETS, evidence_of, pick
from partopt.optimizer.find import find
from partopt.optimizer.floor import floor_of
from partopt.optimizer.rule import judge
from partopt.optimizer.search import Search
from partopt.optimizer.storage import fail_orphans, open_storage, owner
from partopt.profilers.base import CutLatency, Figure

SETTINGS = {
    "linear": {"max_cells": 8000},
    "decoder": {"epochs": 3, "width": 16, "narrowest": 8, "blocks": 1, "batch": 8, "patience": 0},
}


@pytest.fixture
def small(monkeypatch):
    """The quick budget, smaller."""
    budget = replace(
        BUDGETS["quick"],
        split=Split(64, 16, 24),
        resolution=32,
        minimum_images=20,
        settings=SETTINGS,
    )
    monkeypatch.setitem(BUDGETS, "quick", budget)
    return budget


@pytest.fixture
def arena(tiny_loaded, tmp_path):
    """Everything a search wants, and a way to make searches."""
    graph = tiny_loaded.trace()
    cuts = graph.cuts("all")
    images = load_images(None, tiny_loaded.preprocessing, Split(64, 16, 24))
    store = FeatureStore(tmp_path / "f", graph, tiny_loaded.preprocessing, images, "w")
    same = Figure(1.0, 0.0, "measured", "native")  # all ties, as on a host without enclave and GPU
    latencies = [CutLatency(same, same, same, same)] * len(cuts)
    floor = floor_of(images, 32, 0)

    def make_search(storage, threshold=0.2, settings=SETTINGS, last=0, **kwargs):
        # `last` 0 is all cuts
        attackers = {n: make(n, s) for n, s in settings.items()}
        return Search(
            cuts[-last:], latencies[-last:], store, attackers, floor, threshold=threshold,
            scale="corrected", resolution=32, storage=storage, **kwargs,
        )  # fmt: skip

    return make_search


def verdicts(search):
    return [
        v.status
        for v in judge(search.names, search.plan.panel, search.outcome.evidence, search.threshold)
    ]


def test_search_and_sweep_agree_and_the_search_is_cheaper(arena):
    search, sweep = (
        arena(optuna.storages.InMemoryStorage()),
        arena(optuna.storages.InMemoryStorage(), exhaustive=True),
    )
    ours, all_ = search.run(), sweep.run()
    safe = [s == "safe" for s in verdicts(search)]
    assert safe == [s == "safe" for s in verdicts(sweep)]
    assert any(safe)
    assert not all(safe)
    assert ours.run < all_.run == 2 * len(search.cuts)
    assert ours.image_steps < all_.image_steps


def test_a_second_run_reuses_everything(arena, tmp_path):
    path = str(tmp_path / "s.journal")
    first = arena(open_storage(path)[0])
    ran = first.run()
    again = arena(open_storage(path)[0])
    reused = again.run()
    assert (reused.run, reused.reused) == (0, ran.run)
    assert verdicts(again) == verdicts(first)
    assert {k: v.score for k, v in reused.evidence.items()} == {
        k: v.score for k, v in ran.evidence.items()
    }


def test_what_an_attacker_is_built_on_is_fitted_once_a_cut(arena, monkeypatch):
    decoder = make("decoder", {**SETTINGS["decoder"], "epochs": 1})
    few = {"steps": 2, "tvs": (0.0,), "distances": ("l2",), "tuning_images": 4}
    members = {"linear": SETTINGS["linear"], "decoder": decoder.settings()}
    both = {**members, "hybrid": {**few, "decoder": decoder}}
    fits = []
    fit = Decoder.fit

    def counted(self, *args, **kwargs):
        fits.append(self)
        fit(self, *args, **kwargs)

    monkeypatch.setattr(Decoder, "fit", counted)
    memory, most = optuna.storages.InMemoryStorage, {"threshold": 0.99, "last": 1}
    ran = arena(memory(), settings=both, **most).run()
    assert (ran.run, len(fits)) == (3, 1)
    alone = arena(memory(), settings={"hybrid": both["hybrid"]}, **most).run()
    assert len(alone.attacks) == 1
    for job, attack in alone.attacks.items():
        same = ran.attacks[job]
        assert attack.ssim_raw == pytest.approx(same.ssim_raw, abs=1e-6)
        assert attack.image_steps == same.image_steps  # what it is built on counts all the same
    assert sum(a.image_steps for a in ran.attacks.values()) > ran.image_steps


def test_other_settings_do_not_reuse(arena, tmp_path):
    path = str(tmp_path / "s.journal")
    arena(open_storage(path)[0]).run()
    other = {**SETTINGS, "linear": {"max_cells": 4000}}
    outcome = arena(open_storage(path)[0], settings=other).run()
    assert outcome.run > 0
    assert outcome.reused > 0  # decoders are the same
    assert arena(open_storage(path)[0], seed=1).run().reused == 0


def test_results_of_another_version_are_not_reused(arena, tmp_path, monkeypatch):
    path = str(tmp_path / "s.journal")
    monkeypatch.setattr(search_module, "ATTACK_VERSION", 0)
    ran = arena(open_storage(path)[0]).run().run
    monkeypatch.undo()
    outcome = arena(open_storage(path)[0]).run()
    assert (outcome.run, outcome.reused) == (ran, 0)


def test_a_study_of_another_version_is_refused(arena, tmp_path):
    storage, _ = open_storage(str(tmp_path / "s.journal"))
    name = arena(storage).run().study
    optuna.load_study(study_name=name, storage=storage).set_user_attr("attack_version", 999)
    with pytest.raises(ConfigError, match="attack version 999"):
        arena(storage).run()


def test_a_damaged_journal_is_one_sentence(tmp_path):
    path = tmp_path / "s.journal"
    path.write_text('{"op_code": 0, "worker_id"\n{"op_code": 99}\n')
    with pytest.raises(UsageError, match="`storage` got"):
        open_storage(str(path))


@pytest.mark.slow
def test_a_proof_for_a_lower_threshold_is_no_evidence_for_a_higher_one(arena, tmp_path):
    path = str(tmp_path / "s.journal")
    only = {"decoder": SETTINGS["decoder"]}
    low = arena(open_storage(path)[0], threshold=0.02, settings=only)
    low.run()
    short = [j for j, a in low.outcome.attacks.items() if a.outcome == "stopped at proof"]
    assert short, "the low threshold must have stopped an attack early"
    high = arena(open_storage(path)[0], threshold=0.9, settings=only)
    high.run()
    for job in short:
        if job in high.outcome.attacks:
            attack = high.outcome.attacks[job]
            assert attack.outcome == "full budget" or attack.low >= 0.9


def test_only_certified_trials_are_feasible(arena):
    storage = optuna.storages.InMemoryStorage()
    search = arena(storage)
    search.run()
    study = optuna.load_study(study_name=search.outcome.study, storage=storage)
    status = verdicts(search)
    trials = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    feasible = [t for t in trials if all(v <= 0 for v in t.constraints.values())]
    assert all(t.constraints for t in study.trials if t.state.is_finished())
    assert {t.params["cut"] for t in feasible} == {i for i, s in enumerate(status) if s == "safe"}
    assert status[study.best_trial.params["cut"]] == "safe"


class Broken(Linear):
    def fit(self, *args, **kwargs):
        raise AttackError("diverged")


class OutOfMemory(Linear):
    def fit(self, *args, **kwargs):
        raise MemoryError


@pytest.mark.parametrize("kind", [Broken, OutOfMemory])
def test_failed_attacks_count_as_leaking_and_are_run_again(arena, monkeypatch, tmp_path, kind):
    path = str(tmp_path / "s.journal")
    monkeypatch.setitem(registry.ATTACKERS, "linear", kind)
    search = arena(open_storage(path)[0])
    search.run()
    assert "safe" not in verdicts(search)
    assert set(verdicts(search)) <= {"failed", "undecided", "not attacked"}
    study = optuna.load_study(study_name=search.outcome.study, storage=search.storage)
    assert all(t.constraints == {"privacy": 1.0} for t in study.trials if t.state.is_finished())
    monkeypatch.undo()
    again = arena(open_storage(path)[0])
    again.run()
    assert "safe" in verdicts(again)


class OnceBroken(Decoder):
    """Diverges at the learning rate that it was given, not at a lower one."""

    def fit(self, *args, **kwargs):
        if self.lr >= 2e-3:
            raise AttackError("diverged: nan")
        super().fit(*args, **kwargs)


class OutOfGpuMemory(Decoder):
    def fit(self, *args, **kwargs):
        if self.batch >= 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        super().fit(*args, **kwargs)


@pytest.mark.parametrize("kind", [OnceBroken, OutOfGpuMemory])
def test_a_failure_is_recorded_and_tried_once_more_with_safer_settings(arena, monkeypatch, kind):
    monkeypatch.setitem(registry.ATTACKERS, "decoder", kind)
    search = arena(optuna.storages.InMemoryStorage())
    search.run()
    study = optuna.load_study(study_name=search.outcome.study, storage=search.storage)
    failed = [t for t in study.trials if t.state == optuna.trial.TrialState.FAIL]
    assert failed
    assert all(t.constraints == {"privacy": 1.0} for t in failed), "counts as leaking"
    tried = [a for (_, name), a in search.outcome.attacks.items() if name == "decoder"]
    assert len(failed) == len(tried)
    assert all(a.outcome != "failed" and "second, with safer settings" in a.note for a in tried)
    assert all(("lr=0.00066" in a.settings) and ("batch=4" in a.settings) for a in tried)
    assert "safe" in verdicts(search)


class AlwaysBroken(Decoder):
    tries = 0

    def fit(self, *args, **kwargs):
        type(self).tries += 1
        raise AttackError("diverged: inf")


def test_what_fails_twice_stays_failed_and_leaks(arena, monkeypatch):
    monkeypatch.setitem(registry.ATTACKERS, "decoder", AlwaysBroken)
    search = arena(optuna.storages.InMemoryStorage())
    search.run()
    failed = [a for a in search.outcome.attacks.values() if a.outcome == "failed"]
    assert failed
    assert AlwaysBroken.tries == 2 * len(failed)
    assert "safe" not in verdicts(search)


def test_several_workers_give_the_same_answer(arena):
    one = arena(optuna.storages.InMemoryStorage())
    one.run()
    two = arena(optuna.storages.InMemoryStorage())
    two.run(workers=2)
    assert verdicts(one) == verdicts(two)


def test_orphans_fail_and_live_trials_do_not(tmp_path):
    storage, _ = open_storage(str(tmp_path / "s.journal"))
    study = optuna.create_study(storage=storage)
    alive, dead, unknown = study.ask(), study.ask(), study.ask()
    alive.set_user_attr("owner", owner())
    dead.set_user_attr("owner", {**owner(), "pid": 2**22 - 1, "start": "1"})
    assert fail_orphans(study) == 2
    states = {t.number: t.state.name for t in study.trials}
    assert states == {alive.number: "RUNNING", dead.number: "FAIL", unknown.number: "FAIL"}


def test_what_a_killed_worker_was_at_is_tried_with_safer_settings(arena, tmp_path):
    """As the kernel does when memory runs out: no exception, no word, a trial left running."""
    storage, _ = open_storage(str(tmp_path / "s.journal"))
    search = arena(storage)
    study = search._study()
    last = len(search.cuts) - 1
    trial = study.ask()
    trial.set_user_attr("owner", {**owner(), "pid": 2**22 - 1, "start": "1"})
    trial.set_user_attr("cut_name", search.names[last])
    trial.set_user_attr("attacker", "decoder")
    assert "safe" not in verdicts(search), "until it succeeds the cut counts as leaking"
    search.run()
    states = [t.state.name for t in study.get_trials(deepcopy=False)]
    assert states[0] == "FAIL"
    attack = search.outcome.attacks[last, "decoder"]
    assert attack.outcome == "full budget"
    assert "second, with safer settings" in attack.note
    assert "lr=0.00066" in attack.settings
    others = [a for (i, n), a in search.outcome.attacks.items() if n == "decoder" and i != last]
    assert all("safer" not in a.note for a in others)


def test_resuming_after_kill(tmp_path):
    """kill -9 in the middle; the same command reuses every finished trial."""
    script = textwrap.dedent(
        """
        import sys
        from dataclasses import replace
        from partopt.datasets import Split
        from partopt.optimizer.budgets import BUDGETS
        from partopt.optimizer import find as f
        from partopt.models import load_model
        BUDGETS["quick"] = replace(BUDGETS["quick"], split=Split(48, 12, 12), resolution=32,
            minimum_images=20, settings={"linear": {"max_cells": 4000}, "decoder": {"epochs": 2,
            "width": 8, "narrowest": 8, "blocks": 1, "patience": 0}})
        class W(f.Silent):
            def attacked(self, *a): print("done", flush=True)
        m = load_model("resumed:net", weights="none", input_size=32)
        r = f.find(m, cuts=["0", "2", "4", "6"], repetitions=1, watcher=W())
        print("search", r.config.search.trials_run, r.config.search.trials_reused)
        """
    )
    (tmp_path / "resumed.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    steps = [nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh()]\n"
        "    for _ in range(3):\n"
        "        steps += [nn.Conv2d(8, 8, 3, 2, 1), nn.Tanh()]\n"
        "    return nn.Sequential(*steps, nn.Flatten(), nn.Linear(32, 3))\n"
    )
    env = {**os.environ, "PARTOPT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
    run = [sys.executable, "-W", "ignore", "-c", script]
    first = subprocess.Popen(run, env=env, stdout=subprocess.PIPE, text=True)
    lines = [first.stdout.readline() for _ in range(3)]
    assert lines == ["done\n"] * 3
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    second = subprocess.run(run, env=env, capture_output=True, text=True, timeout=200)
    assert second.returncode == 0, second.stderr
    word, ran, reused = second.stdout.splitlines()[-1].split()
    assert word == "search"
    assert int(reused) >= 3
    assert int(ran) + int(reused) <= 8


def test_find_end_to_end(tiny_loaded, small):
    result = find(tiny_loaded, ssim=0.2, repetitions=2)
    assert result.found
    config = result.config
    assert config.cut.name == result.cut.name
    chosen = next(r for r in config.cuts if r.name == config.cut.name)
    assert chosen.safe
    assert chosen.status == "screened"
    after = config.cuts[[r.name for r in config.cuts].index(chosen.name) :]
    assert all(r.high < 0.2 for r in after)
    assert any(r.status == "leaks" for r in config.cuts)
    assert config.privacy.evidence == "screening"
    assert any("does not certify" in w for w in config.warnings)
    assert any("generated images" in w for w in config.warnings)
    assert json.loads(config.to_json())["cut"]["boundary"][0]["dtype"] == "float32"
    assert type(config).parse(config.to_json().encode()) == config


@pytest.mark.slow
def test_the_answer_does_not_change_from_run_to_run(tiny_loaded, small, monkeypatch, tmp_path):
    names = set()
    for i in range(3):
        monkeypatch.setenv("PARTOPT_CACHE", str(tmp_path / str(i % 2)))
        names.add(find(tiny_loaded, repetitions=3).cut.name)
    assert len(names) == 1


@pytest.mark.timeout(120)
def test_one_cut_and_one_attacker_come_to_an_end(tiny_loaded, small):
    result = find(tiny_loaded, cuts=["down.1"], attackers=["linear"], repetitions=2)
    assert result.config.search.trials_run == 1


def test_no_safe_cut(tiny_loaded, small):
    result = find(tiny_loaded, ssim=0.2, cuts=["stem.1", "down.1"], repetitions=1)
    assert not result.found
    assert result.config.cut is None
    assert all(not r.safe for r in result.config.cuts)


def test_raw_scale_and_reduced_panel_are_said(tiny_loaded, small):
    result = find(tiny_loaded, scale="raw", attackers=["linear"], repetitions=1)
    config = result.config
    assert config.privacy.scale == "raw"
    assert [a.name for a in config.privacy.attackers] == ["linear"]
    assert any("panel was reduced: decoder" in w for w in config.warnings)
    row = config.cuts[0]
    assert row.score == pytest.approx(row.ssim_raw)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ssim": 0}, "`ssim` got 0"),
        ({"ssim": 1.5}, "`ssim` got 1.5"),
        ({"scale": "log"}, "`scale` got 'log'"),
        ({"budget": "huge"}, "`budget` got 'huge'"),
        ({"workers": 0}, "`workers` got 0"),
        ({"threads": 0}, "`threads` got 0"),
        ({"batch": 0}, "`batch`"),
        ({"resolution": 4096}, "`resolution` got 4096"),
        ({"attackers": ["linaer"]}, r"nearest: linear"),
        ({"attackers": ["blind"]}, "besides blind"),
        ({"cuts": []}, "`cuts` got"),
        ({"sgx_model": "fast"}, "`sgx-model` got"),
        ({"storage": "nonsense://x"}, "`storage` got"),
    ],
)
def test_wrong_arguments(tiny_loaded, small, kwargs, message):
    with pytest.raises(UsageError, match=message):
        find(tiny_loaded, repetitions=1, **kwargs)


def test_evidence_is_what_the_run_had():
    full, standard = BUDGETS["full"], BUDGETS["standard"]
    everyone, three = list(full.settings), ["linear", "newton", "decoder", "hybrid"]
    assert evidence_of(full, everyone, 5000, 224) == "full"
    assert evidence_of(full, everyone, 1700, 224) == "standard"
    assert evidence_of(full, everyone, 500, 224) == "screening"
    assert evidence_of(full, three, 5000, 224) == "standard", "not the panel of full"
    assert evidence_of(standard, everyone, 5000, 224) == "standard"
    assert evidence_of(standard, three, 5000, 224) == "standard"
    assert evidence_of(standard, ["linear", "decoder"], 5000, 224) == "screening"
    assert evidence_of(standard, ["linear"], 5000, 224) == "screening"
    assert evidence_of(standard, three, 5000, 64) == "screening"
    assert evidence_of(BUDGETS["quick"], everyone, 5000, 224) == "screening"


def test_panels_that_certify_are_white_box_and_share_one_decoder():
    for name in ("standard", "full"):
        panel = BUDGETS[name].panel()
        assert {"linear", "decoder", "hybrid"} <= set(panel)
        assert repr(panel["hybrid"].decoder) == repr(panel["decoder"])
    full = BUDGETS["full"].panel()
    assert list(full) == ["linear", "newton", "decoder", "cgan", "rmle", "hybrid", "ensemble"]
    assert repr(full["ensemble"].hybrid) == repr(full["hybrid"])
    assert repr(full["ensemble"].rmle) == repr(full["rmle"])


def test_budgets_are_labelled():
    assert [pick(n).evidence for n in ("quick", "standard", "full")] == [
        "screening", "standard", "full",
    ]  # fmt: skip


def test_ctrl_c_leaves_a_resumable_study(arena, tmp_path):
    path = str(tmp_path / "s.journal")
    done = []

    def stop_after_two(cut, attack, leaks):
        done.append(cut)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        arena(open_storage(path)[0], on_done=stop_after_two).run()
    outcome = arena(open_storage(path)[0]).run()
    assert outcome.reused == 2
