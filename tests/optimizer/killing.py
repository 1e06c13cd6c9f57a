"""A search by workers in processes of their own, some of which are killed again and again.

Run as a program: URL, number of workers, kills, seed. Prints as JSON what one process finds, what
the fleet found, and what the storage held along the way. Processes are forked from this one, which
has imported everything and computed nothing, so that a killed one is soon there again.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import fleet_of
import optuna
import torch
from fleet_of import DECODER, Small, statuses, told
from torch import nn

from partopt.attackers import panel as registry
from partopt.attackers.linear import Linear
from partopt.attackers.sketch import Sketch
from partopt.optimizer.confirm import confirm
from partopt.optimizer.coordinator import Pace
from partopt.optimizer.storage import open_storage
from partopt.optimizer.sweep import Sweepers, sweep
from partopt.optimizer.worker import WorkerPace

PACE = Pace(patience=6.0, poll=0.02)
LAYERS = int(os.environ.get("LAYERS", "3"))
TOOK = float(os.environ.get("TOOK", "0.3"))  # seconds of a slow attack
EVERY = float(os.environ.get("EVERY", "0.5"))  # seconds between kills, on the average
PANEL = {"slow": {"max_cells": 2000}, "decoder": {**DECODER, "batch": 8, "lr": 2e-3}}
SKETCH = {"max_cells": 1000, "max_terms": 100, "ridges": (1e-1,)}
ATTRIBUTES = ("settings", "ssim_per_side", "retrieved", "complete", "rising", "image_steps")


class Slow(Linear):
    """Takes its time, without the processor."""

    name = "slow"

    def fit(self, pairs, context):
        for step in range(10):
            time.sleep(TOOK / 10)
            context.report(step / 20)
        super().fit(pairs, context)


def deep(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    steps: list[nn.Module] = [nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh()]
    for _ in range(LAYERS):
        steps += [nn.Conv2d(8, 8, 3, 1, 1), nn.Tanh()]
    steps += [nn.Conv2d(8, 8, 3, 2, 1), nn.Tanh(), nn.Conv2d(8, 8, 3, 2, 1), nn.Tanh()]
    return nn.Sequential(*steps, nn.Flatten(), nn.Linear(128, 3)).eval()


def whole(storage, fleet: bool) -> dict:
    """Search, sweep and confirmation: all evidence and the answer."""
    small = Small()
    crew = small.fleet(PACE) if fleet else None
    search = small.search(storage, crew, PANEL, exhaustive=True, threshold=0.5)
    search.run(1)
    chosen = search.answer()
    assert chosen is not None
    swept = sweep(search, small.cuts, chosen, Sweepers(sketch=Sketch(**SKETCH)), 1)
    again = confirm(search, None, 1)
    return {
        "answer": search.names[chosen],
        "after": search.answer(),
        "statuses": statuses(search),
        "attacks": [[list(job), a.model_dump()] for job, a in told(search).items()],
        "again": sorted(
            ([list(job), a.model_dump()] for more in again for job, a in told(more).items()),
            key=str,
        ),
        "swept": [swept.ahead["sketch"].model_dump(), [c.name for c in swept.suspects]],
    }


def results(storage) -> dict[str, list]:
    """What finished trials hold, by key."""
    found: dict[str, list] = {}
    for study in storage.get_all_studies():
        for trial in storage.get_all_trials(study._study_id, deepcopy=False):
            if trial.state == optuna.trial.TrialState.COMPLETE:
                held = {name: trial.user_attrs.get(name) for name in ATTRIBUTES}
                found.setdefault(str(trial.user_attrs.get("key")), []).append(held)
    return found


def states(storage) -> dict[str, int]:
    count: dict[str, int] = {}
    for study in storage.get_all_studies():
        for trial in storage.get_all_trials(study._study_id, deepcopy=False):
            count[trial.state.name] = count.get(trial.state.name, 0) + 1
    return count


def child(work) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def ended(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def main(url: str, workers: int, kills: int, seed: int) -> dict:
    registry.ATTACKERS["slow"] = Slow
    fleet_of.network = deep
    torch.set_num_threads(1)  # in processes that are forked too, as a fleet's attacks are made
    folder = Path(os.environ["PARTOPT_CACHE"])
    chance = random.Random(seed)

    def alone() -> None:
        storage = optuna.storages.InMemoryStorage()
        found = {"whole": whole(storage, fleet=False), "results": results(storage)}
        (folder / "alone.json").write_text(json.dumps(found))

    def coordinate() -> None:
        found = whole(open_storage(url)[0], fleet=True)
        (folder / "fleet.json").write_text(json.dumps(found))

    def work() -> None:
        storage = open_storage(url)[0]
        Small().worker(storage, pace=WorkerPace(patience=PACE.patience)).run()

    began = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(child(alone), 0)[1]) == 0
    took = [time.monotonic() - began]
    began = time.monotonic()
    coordinator = child(coordinate)
    hands = [child(work) for _ in range(workers)]
    struck, again, left = [0, 0], 0, kills
    due = time.monotonic() + 1.0
    while True:
        time.sleep(0.01)
        code = ended(coordinator)
        if code == 0:
            break
        assert code is None, f"the coordinator ended with {code}"
        for i, hand in enumerate(hands):
            if (code := ended(hand)) is not None:
                raise AssertionError(f"worker {i} ended with {code}")
        if not left or time.monotonic() < due:
            continue
        left -= 1
        due = time.monotonic() + chance.uniform(0.5 * EVERY, 1.5 * EVERY)
        pick = chance.randrange(workers)
        if chance.random() < 0.15:
            os.kill(coordinator, signal.SIGKILL)
            os.waitpid(coordinator, 0)
            coordinator, again = child(coordinate), again + 1
            struck[1] += 1
        else:
            os.kill(hands[pick], signal.SIGKILL)
            os.waitpid(hands[pick], 0)
            hands[pick] = child(work)
            struck[0] += 1
    took.append(time.monotonic() - began)
    for hand in hands:
        os.kill(hand, signal.SIGKILL)
        os.waitpid(hand, 0)
    storage = open_storage(url)[0]
    return {
        "alone": json.loads((folder / "alone.json").read_text()),
        "fleet": {
            "whole": json.loads((folder / "fleet.json").read_text()),
            "results": results(storage),
        },
        "states": states(storage),
        "killed": {"workers": struck[0], "coordinators": struck[1], "not yet": left},
        "seconds": took,
    }


if __name__ == "__main__":
    address, number, times, first = sys.argv[1:]
    print(json.dumps(main(address, int(number), int(times), int(first))))
