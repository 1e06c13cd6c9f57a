import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch

from partopt.attackers import panel as registry
from partopt.attackers.decoder import Decoder
from partopt.attackers.features import FeatureStore
from partopt.attackers.linear import Linear
from partopt.attackers.panel import make
from partopt.errors import AttackError, ConfigError, StorageError, UsageError
from partopt.images.load import Split, load_images
from partopt.optimizer import keys as keys_module
from partopt.optimizer import search as search_module
from partopt.optimizer.attempt import Bench
from partopt.optimizer.budgets import BUDGETS, budget_of, evidence_of
from partopt.optimizer.find import find
from partopt.optimizer.floor import floor_of
from partopt.optimizer.rule import judge
from partopt.optimizer.search import Course, Listener, Search
from partopt.optimizer.storage import CLAIM, fail_orphans, finished, open_storage, owner
from partopt.profilers.base import CutLatency, Duration

SETTINGS = {
    "linear": {"max_cells": 8000},
    "decoder": {
        "epochs": 3,
        "lr": 2e-3,
        "width": 16,
        "narrowest": 8,
        "blocks": 1,
        "batch": 8,
        "patience": 0,
        "crops": 0,
    },
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
    # All ties, as on a host without enclave and GPU.
    same = Duration(1.0, 0.0, "measured", "native")
    latencies = [CutLatency(enclave=same, handoff=same, accelerator=same, total=same)] * len(cuts)
    floor = floor_of(images, 32, 0)

    def make_search(storage, threshold=0.2, settings=SETTINGS, last=0, **kwargs):
        # `last` 0 is all cuts
        attackers = {n: make(n, s) for n, s in settings.items()}
        bench = Bench(store=store, floors={32: floor}, seed=kwargs.pop("seed", 0))
        told = {n: kwargs.pop(n) for n in ("on_progress", "on_done") if n in kwargs}
        course = Course(threshold=threshold, **kwargs)
        return Search(
            cuts[-last:],
            latencies[-last:],
            bench,
            attackers,
            course,
            storage,
            Listener(**told),
        )

    return make_search


def verdicts(search):
    return [
        v.status
        for v in judge(
            search.names, search.plan.panel, search.outcome.evidence, search.course.threshold
        )
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
    for module in (keys_module, search_module):
        monkeypatch.setattr(module, "ATTACK_VERSION", 0)
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


class StopsAtProof(Linear):
    """Asks, as trained attackers do after an epoch, whether it may stop."""

    def fit(self, pairs, context):
        super().fit(pairs, context)
        context.stopped_early = context.proven(self.reconstruct, 1.0)


def test_what_stopped_at_a_proof_is_run_again_for_a_higher_threshold(arena, monkeypatch):
    monkeypatch.setitem(registry.ATTACKERS, "linear", StopsAtProof)
    only, storage = {"linear": SETTINGS["linear"]}, optuna.storages.InMemoryStorage()
    low = arena(storage, threshold=0.02, settings=only, last=6)
    low.run()
    short = [j for j, a in low.outcome.attacks.items() if a.outcome == "stopped at proof"]
    assert short
    assert all(low.outcome.attacks[job].low >= 0.02 for job in short)
    again = [job for job in short if low.outcome.attacks[job].low < 0.9]
    assert again
    outcome = arena(storage, threshold=0.9, settings=only, last=6).run()
    assert outcome.run == len(again)
    assert all(outcome.attacks[job].outcome == "full budget" for job in again)


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


def test_a_second_try_is_kept_as_what_it_is(arena, monkeypatch, tmp_path):
    """Under its own settings; it stands for the first only where the first is known to fail."""
    path, last = str(tmp_path / "s.journal"), {"last": 1}
    only = {"decoder": {**SETTINGS["decoder"], "epochs": 1}}
    monkeypatch.setitem(registry.ATTACKERS, "decoder", OnceBroken)
    first = arena(open_storage(path)[0], settings=only, **last)
    first.run()
    (attack,) = first.outcome.attacks.values()
    panel = first.panel["decoder"]
    assert attack.key == first.key(first.cuts[0], panel.safer()) != first.key(first.cuts[0], panel)
    again = arena(open_storage(path)[0], settings=only, **last)
    assert (again.run().run, again.outcome.reused) == (0, 1)
    assert "second, with safer settings" in again.outcome.attacks[0, "decoder"].note
    # Who asks for the safer settings gets that attack for what it is: a first try.
    asked = {"decoder": panel.safer().settings()}
    direct = arena(open_storage(path)[0], settings=asked, **last)
    assert (direct.run().run, direct.outcome.reused) == (0, 1)
    assert "safer" not in direct.outcome.attacks[0, "decoder"].note


def test_an_attack_with_safer_settings_does_not_stand_for_one_that_never_failed(arena, tmp_path):
    path, last = str(tmp_path / "s.journal"), {"last": 1}
    settings = {**SETTINGS["decoder"], "epochs": 1}
    weak = {"decoder": make("decoder", settings).safer().settings()}
    arena(open_storage(path)[0], settings=weak, **last).run()
    strong = arena(open_storage(path)[0], settings={"decoder": settings}, **last)
    assert (strong.run().run, strong.outcome.reused) == (1, 0)


def test_the_source_of_attacks_and_of_plug_ins_is_part_of_the_key(arena, monkeypatch, tmp_path):
    search = arena(optuna.storages.InMemoryStorage(), last=1)
    cut, ours = search.cuts[0], search.panel["linear"]
    assert keys_module.plugin_source(ours) == ""
    assert keys_module.plugin_source(OnceBroken()) != ""
    before = search.key(cut, ours), search.key(cut, OnceBroken())
    with monkeypatch.context() as patch:
        patch.setattr(keys_module, "attack_source", lambda: "edited")
        assert search.key(cut, ours) != before[0]
    monkeypatch.setattr(keys_module, "file_digest", lambda path: "edited")
    assert search.key(cut, ours) == before[0]
    assert search.key(cut, OnceBroken()) != before[1]


def test_nothing_is_attacked_where_only_the_storage_counts(arena, tmp_path):
    path = str(tmp_path / "s.journal")
    cold = arena(open_storage(path)[0], attack=False, last=1)
    assert (cold.run().run, verdicts(cold)) == (0, ["not attacked"])
    arena(open_storage(path)[0], last=1).run()
    warm = arena(open_storage(path)[0], attack=False, last=1)
    assert (warm.run().run, warm.outcome.reused) == (0, 2)


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
        from partopt.images.load import Split
        from partopt.optimizer.budgets import BUDGETS
        from partopt.optimizer import find as f
        from partopt.models.load import load_model
        BUDGETS["quick"] = replace(BUDGETS["quick"], split=Split(48, 12, 12), resolution=32,
            minimum_images=20, settings={"linear": {"max_cells": 4000}, "decoder": {"epochs": 2,
            "width": 8, "narrowest": 8, "blocks": 1, "patience": 0,
            "crops": 0}})
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


def claim_of(storage, search, job, who, name="another"):
    """A trial for `job` that another process runs, in a study of its own."""
    study = optuna.create_study(storage=storage, study_name=name)
    trial = study.ask()
    key = search.key(search.cuts[job[0]], search.panel[job[1]])
    trial.set_user_attr("owner", who)
    trial.set_user_attr(CLAIM, key)
    return study, trial, key


def sleeper():
    process = subprocess.Popen(["sleep", "100"])
    start = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    return process, {**owner(), "pid": process.pid, "start": start}


LINEAR = {"linear": SETTINGS["linear"]}


def test_what_another_process_is_at_is_waited_for_and_taken(arena, tmp_path):
    alone = arena(optuna.storages.InMemoryStorage(), settings=LINEAR, last=1)
    alone.run()
    memory, told = alone.storage, []
    done = optuna.load_study(study_name=alone.outcome.study, storage=memory).trials[0]
    storage, _ = open_storage(str(tmp_path / "s.journal"))
    process, who = sleeper()

    def progress(what, share):
        if "waiting for process" in what and not told:
            told.append(what)
            for name, value in done.user_attrs.items():
                if name not in ("owner", CLAIM):
                    trial.set_user_attr(name, value)
            study.tell(trial, 1.0)

    search = arena(storage, settings=LINEAR, last=1, on_progress=progress)
    study, trial, _ = claim_of(storage, search, (0, "linear"), who)
    outcome = search.run()
    process.kill()
    process.wait()
    assert told == [f"waiting for process {process.pid}: linear on {search.names[0]}"]
    assert (outcome.run, outcome.reused) == (0, 1)
    assert outcome.evidence == alone.outcome.evidence


@pytest.mark.parametrize("end", ["dies", "fails"])
def test_what_another_process_leaves_undone_is_done_here(arena, tmp_path, end):
    storage, _ = open_storage(str(tmp_path / "s.journal"))
    process, who = sleeper()

    def progress(what, share):
        if "waiting for process" in what:
            if end == "dies":
                process.kill()
                process.wait()
            elif trial.study.trials[0].state == optuna.trial.TrialState.RUNNING:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)

    search = arena(storage, settings=LINEAR, last=1, on_progress=progress)
    study, trial, _ = claim_of(storage, search, (0, "linear"), who)
    outcome = search.run()
    process.kill()
    process.wait()
    assert (outcome.run, outcome.reused) == (1, 0)
    assert outcome.attacks[0, "linear"].outcome == "full budget"


def test_nobody_waits_for_a_machine_that_cannot_be_seen(arena, tmp_path):
    storage, _ = open_storage(str(tmp_path / "s.journal"))
    search = arena(storage, settings=LINEAR, last=2)
    claim_of(storage, search, (1, "linear"), {**owner(), "host": "another"})
    outcome = search.run()
    assert outcome.run == 2
    assert list(outcome.attacks) == [(0, "linear"), (1, "linear")], "the other job first"


def test_a_stored_result_that_is_not_whole_is_no_evidence(arena, tmp_path):
    storage, _ = open_storage(str(tmp_path / "s.journal"))
    first = arena(storage, settings=LINEAR, last=1)
    first.run()
    key = first.key(first.cuts[0], first.panel["linear"])
    done = finished(storage, [key])[key]
    damages = [
        {"ssim_per_side": {"32": [0.0]}},
        {"ssim_per_side": {"32": [float("nan")] * 24}},
        {"complete": "yes"},
        {"ssim_per_side": {"32": [7.0] * 24}},
        {"ssim_per_side": "x"},
        {"settings": None},
    ]
    for i, damage in enumerate(damages):
        search = arena(storage, settings=LINEAR, last=1)
        study, trial, _ = claim_of(storage, search, (0, "linear"), owner(), name=str(i))
        for name, value in {**done.user_attrs, **damage}.items():
            trial.set_user_attr(name, value)
        study.tell(trial, 1.0)
        search._reuse()
        assert not search.outcome.evidence, damage
    outcome = search.run()
    assert (outcome.run, outcome.reused) == (1, 0)
    assert outcome.evidence == first.outcome.evidence


def test_a_full_disk_ends_the_search_and_room_lets_it_go_on(arena, tmp_path, monkeypatch):
    path = str(tmp_path / "s.journal")
    whole = arena(open_storage(path)[0], settings=LINEAR, last=3).run()
    (tmp_path / "s.journal").unlink()
    write, room = os.write, [9000]

    def full(handle, data):
        room[0] -= len(data)
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="make room there and run the same command again"):
        arena(open_storage(path)[0], settings=LINEAR, last=3).run()
    monkeypatch.undo()
    outcome = arena(open_storage(path)[0], settings=LINEAR, last=3).run()
    assert outcome.run + outcome.reused == 3
    assert outcome.reused > 0
    assert outcome.evidence == whole.evidence


TOGETHER = """
    import json, sys, time
    from pathlib import Path
    import torch
    from torch import nn
    from partopt.attackers.features import FeatureStore, Making
    from partopt.attackers.panel import make
    from partopt.images.load import Split, load_images
    from partopt.models.load import LoadedModel
    from partopt.optimizer.floor import floor_of
    from partopt.optimizer.rule import judge
    from partopt.optimizer.attempt import Bench
    from partopt.optimizer.search import Course, Search
    from partopt.optimizer.storage import open_storage
    from partopt.preprocessing import Preprocessing
    from partopt.profilers.base import CutLatency, Duration

    number, attackers, most, gate, journal = sys.argv[1:]
    torch.manual_seed(1)
    steps = [nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh()]
    for _ in range(2):
        steps += [nn.Conv2d(8, 8, 3, 2, 1), nn.Tanh()]
    net = nn.Sequential(*steps, nn.Flatten(), nn.Linear(128, 3)).eval()
    loaded = LoadedModel("tests:net", net, Preprocessing(32, 36, (0.5,) * 3, (0.5,) * 3), "r", "0")
    graph = loaded.trace()
    cuts = graph.cuts("all")[1:4]
    images = load_images(None, loaded.preprocessing, Split(48, 12, 12))
    settings = {"linear": {"max_cells": 4000},
        "decoder": {"epochs": 2, "width": 8, "narrowest": 8, "blocks": 1, "patience": 0,
            "crops": 0}}
    store = FeatureStore(Path(gate) / "f", graph, loaded.preprocessing, images, "w",
        Making(budget_bytes=int(most)))
    floor = floor_of(images, 32, 0)
    took = Duration(1.0, 0.0, "measured", "native")
    same = CutLatency(enclave=took, handoff=took, accelerator=took, total=took)
    (Path(gate) / f"ready{number}").touch()
    while not (Path(gate) / "go").exists():
        time.sleep(0.01)
    search = Search(cuts, [same] * len(cuts), Bench(store=store, floors={32: floor}),
        {n: make(n, settings[n]) for n in attackers.split(",")},
        Course(threshold=0.9, exhaustive=True), open_storage(journal)[0])
    outcome = search.run()
    found = judge(search.names, search.plan.panel, outcome.evidence, 0.9)
    print(json.dumps([[v.status for v in found],
        {f"{i} {n}": round(e.score.value, 4) for (i, n), e in sorted(outcome.evidence.items())},
        outcome.run]))
"""


def together(tmp_path, panels, most=1 << 30):
    """Searches of processes that begin at the same moment, on one cache and one journal."""
    folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    env = {**os.environ, "PARTOPT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    script = textwrap.dedent(TOGETHER)
    journal = str(folder / "s.journal")
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                script,
                str(i),
                panel,
                str(most),
                str(folder),
                journal,
            ],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, panel in enumerate(panels)
    ]
    while len(list(folder.glob("ready*"))) < len(panels):
        assert all(p.poll() is None for p in running), running[0].stderr.read()
        time.sleep(0.02)
    (folder / "go").touch()
    found = []
    for process in running:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        found.append(json.loads(out))
    return found


def alone(panel, tmp_path, monkeypatch, capsys):
    """The same search, in this process."""
    folder = tmp_path / f"alone-{panel}"
    folder.mkdir()
    (folder / "go").touch()
    arguments = ["-", "0", panel, str(1 << 30), str(folder), str(folder / "s.journal")]
    monkeypatch.setattr(sys, "argv", arguments)
    capsys.readouterr()
    exec(textwrap.dedent(TOGETHER), {})
    return json.loads(capsys.readouterr().out)


def test_two_runs_at_once_give_the_answer_of_one(tmp_path, monkeypatch, capsys):
    """Equal ones, with so little room for features that each wants to evict the other's."""
    one = alone("linear,decoder", tmp_path, monkeypatch, capsys)
    assert one[2] == 6
    two = together(tmp_path, ["linear,decoder"] * 2, most=120_000)
    assert [t[:2] for t in two] == [one[:2]] * 2
    assert sum(t[2] for t in two) == 6, "what one does the other takes"


@pytest.mark.slow
def test_four_unequal_runs_at_once_give_the_answers_they_give_alone(tmp_path, monkeypatch, capsys):
    panels = ["linear,decoder", "linear", "decoder", "linear,decoder"]
    one = {panel: alone(panel, tmp_path, monkeypatch, capsys) for panel in set(panels)}
    four = together(tmp_path, panels, most=120_000)
    for panel, found in zip(panels, four, strict=True):
        assert found[:2] == one[panel][:2]
    assert sum(found[2] for found in four) == 6


def test_find_end_to_end(tiny_loaded, small):
    result = find(tiny_loaded, ssim=0.2, repetitions=2)
    assert result.found
    config = result.config
    assert config.cut.name == result.cut.name
    chosen = next(r for r in config.cuts if r.name == config.cut.name)
    assert (chosen.status, chosen.safe) == ("screened", False)
    assert config.standing == "screened"
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
    everyone, three = list(full.settings), list(standard.settings)
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
        assert repr(panel["stack"].decoder) == repr(panel["decoder"])
    full = BUDGETS["full"].panel()
    assert set(full) == {"linear", "newton", "decoder", "cgan", "rmle", "hybrid", "stack"}
    assert list(full)[-1] == "stack", "its members are fitted by then"
    assert repr(full["stack"].hybrid) == repr(full["hybrid"])


def test_budgets_are_labelled():
    assert [budget_of(n).evidence for n in ("quick", "standard", "full")] == [
        "screening",
        "standard",
        "full",
    ]


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
