"""A small search, once as one process makes it and once as a fleet's, and workers in threads."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import torch
from torch import nn

from partopt.attackers.features import FeatureStore
from partopt.attackers.panel import make
from partopt.cache import cache_dir
from partopt.hashing import hash_state
from partopt.images.load import Split, load_images
from partopt.models.load import LoadedModel
from partopt.optimizer.attempt import Bench
from partopt.optimizer.coordinator import Fleet, Pace
from partopt.optimizer.floor import floors_of
from partopt.optimizer.premises import Own, Premises
from partopt.optimizer.search import Course, Search
from partopt.optimizer.worker import Worker, WorkerPace
from partopt.preprocessing import Preprocessing
from partopt.profilers.base import CutLatency, Duration

SPLIT, LEAST = Split(24, 12, 12), 20
DECODER = {"epochs": 1, "width": 8, "narrowest": 8, "blocks": 1, "patience": 0, "crops": 0}
PANEL = {"linear": {"max_cells": 2000}, "decoder": {**DECODER, "batch": 8, "lr": 2e-3}}
PACE = Pace(patience=6.0, poll=0.01)


def network(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    steps: list[nn.Module] = [nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh()]
    for _ in range(2):
        steps += [nn.Conv2d(8, 8, 3, 2, 1), nn.Tanh()]
    return nn.Sequential(*steps, nn.Flatten(), nn.Linear(128, 3)).eval()


def loaded(seed: int = 1, spec: str = "tests:net") -> LoadedModel:
    net = network(seed)
    half = (0.5,) * 3
    return LoadedModel(
        spec, net, Preprocessing(32, 36, half, half), "r", hash_state(net.state_dict())
    )


class Small:
    """Everything a search wants; one for each test."""

    def __init__(self) -> None:
        self.model = loaded()
        self.graph = self.model.trace()
        self.cuts = self.graph.cuts("all")
        images = load_images(None, self.model.preprocessing, SPLIT, minimum=LEAST)
        store = FeatureStore(
            cache_dir("features"),
            self.graph,
            self.model.preprocessing,
            images,
            self.model.weights_hash,
        )
        self.bench = Bench(store=store, floors=floors_of(images, 32, [32], 0))

    def premises(self) -> Premises:
        return Premises.of(self.model, self.bench, (SPLIT, LEAST), 0)

    def search(self, storage, fleet=None, panel=PANEL, cuts=None, **course) -> Search:
        same = Duration(1.0, 0.0, "measured", "native")
        over = self.cuts if cuts is None else cuts
        latencies = [CutLatency(enclave=same, handoff=same, accelerator=same, total=same)]
        attackers = {n: make(n, s) for n, s in panel.items()}
        terms = Course(**{"threshold": 0.2, **course})
        every = latencies * len(over)
        return Search(over, every, self.bench, attackers, terms, storage, None, fleet)

    def fleet(self, pace=PACE, **keywords) -> Fleet:
        return Fleet(self.premises(), 1, pace=pace, **keywords)

    def own(self, **changed) -> Own:
        return Own(
            **{"model": loaded(), "graph": self.graph, "data": None, "device": "cpu", **changed}
        )

    def worker(self, storage, **keywords) -> Worker:
        pace = keywords.pop("pace", WorkerPace(patience=PACE.patience))
        return Worker(storage, keywords.pop("own", None) or self.own(), pace, **keywords)


@contextmanager
def at_work(*workers: Worker):
    """Workers in threads of this process; what they raise is raised at the end."""
    failed: list[BaseException] = []

    def run(worker: Worker) -> None:
        try:
            worker.run()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(w,), daemon=True) for w in workers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join(30)
    if failed:
        raise failed[0]


def told(search: Search) -> dict:
    """All evidence of a search, without what time it took."""
    return {
        job: attack.model_copy(update={"seconds": 0.0})
        for job, attack in search.outcome.attacks.items()
    }


def statuses(search: Search) -> list[str]:
    return [v.status for v in search.verdicts()]
