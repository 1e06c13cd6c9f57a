"""How much faster the same search is with more workers, and whether it finds the same.

    python benchmarks/fleet.py [--workers 1 2 4 8] [--seconds 2] [--real] [--storage URL]

A small network's cuts are attacked by linear attackers. By default each attack sleeps as well, so
that more workers than cores can be measured; with --real it computes instead, a decoder with one
thread. Each number of workers begins with an empty storage; features and floors are made before.
Prints seconds from when all workers are there to the answer, their ratio to one worker's, and
whether all scores are the same bit for bit.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from partopt.attackers import panel as registry
from partopt.attackers.base import Attacker, Context
from partopt.attackers.features import FeatureStore
from partopt.attackers.linear import Linear
from partopt.attackers.pairs import Pairs
from partopt.cache import cache_dir
from partopt.hashing import hash_state
from partopt.images.load import Split, load_images
from partopt.models.load import LoadedModel
from partopt.optimizer.attempt import Bench
from partopt.optimizer.coordinator import Fleet, Pace
from partopt.optimizer.floor import floors_of
from partopt.optimizer.premises import Own, Premises
from partopt.optimizer.search import Course, Search
from partopt.optimizer.storage import open_storage
from partopt.optimizer.worker import Worker
from partopt.preprocessing import Preprocessing

SPLIT, LEAST = Split(64, 16, 16), 20
SECONDS = [2.0]


class Sleeper(Linear):
    """A linear attacker that takes longer, without the processor."""

    name = "sleeper"

    def fit(self, pairs: Pairs, context: Context) -> None:
        """Sleep, then fit."""
        time.sleep(SECONDS[0])
        super().fit(pairs, context)


def model() -> LoadedModel:
    torch.manual_seed(1)
    steps: list[nn.Module] = [nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh()]
    for _ in range(14):
        steps += [nn.Conv2d(8, 8, 3, 1, 1), nn.Tanh()]
    net = nn.Sequential(*steps, nn.Flatten(), nn.Linear(2048, 3)).eval()
    half = (0.5, 0.5, 0.5)
    return LoadedModel(
        "benchmark", net, Preprocessing(32, 36, half, half), "random", hash_state(net.state_dict())
    )


def prepared() -> tuple[LoadedModel, Bench, list]:
    loaded = model()
    graph = loaded.trace()
    images = load_images(None, loaded.preprocessing, SPLIT, minimum=LEAST)
    store = FeatureStore(
        cache_dir("features"), graph, loaded.preprocessing, images, loaded.weights_hash
    )
    return (
        loaded,
        Bench(store=store, floors=floors_of(images, 32, [32], 0)),
        graph.cuts("all")[-16:],
    )


def panel_of(real: bool) -> dict[str, Attacker]:
    if not real:
        return {"sleeper": Sleeper(max_cells=2000)}
    epochs = {"epochs": 30, "width": 24, "narrowest": 8, "blocks": 1, "patience": 0, "crops": 0}
    return {"decoder": registry.make("decoder", {**epochs, "batch": 8})}


def work(url: str) -> None:
    torch.set_num_threads(1)
    loaded = model()
    Worker(
        open_storage(url)[0], Own(model=loaded, graph=loaded.trace(), data=None, device="cpu")
    ).run()


def measured(url: str, workers: int, real: bool) -> tuple[float, dict]:
    loaded, bench, cuts = prepared()
    premises = Premises.of(loaded, bench, (SPLIT, LEAST), 0)
    course, began = Course(threshold=0.9, exhaustive=True), []
    fleet = Fleet(premises, 1, pace=Pace(poll=0.05))
    search = Search(cuts, [], bench, panel_of(real), course, open_storage(url)[0], None, fleet)
    hands = []
    for _ in range(workers):
        pid = os.fork()
        if not pid:
            try:
                work(url)
            finally:
                os._exit(0)
        hands.append(pid)
    try:
        # Start-up is not the question: it counts from when all workers are there.
        tell = search.listener.on_progress

        def progress(what: str, share: float) -> None:
            tell(what, share)
            if not began and what.startswith(f"{workers} worker"):
                began.append(time.monotonic())

        object.__setattr__(search.listener, "on_progress", progress)
        search.run(0)
        took = time.monotonic() - (began[0] if began else 0.0)
    finally:
        for pid in hands:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return took, {job: a.sides for job, a in search.outcome.attacks.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=2.0, help="that a simulated attack sleeps")
    parser.add_argument("--real", action="store_true", help="attacks that compute")
    parser.add_argument("--storage", help="database URL, emptied before; default: a journal each")
    args = parser.parse_args()
    SECONDS[0] = args.seconds
    registry.ATTACKERS["sleeper"] = Sleeper
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PARTOPT_CACHE"] = folder
        warm, _, found = os.fork(), None, []
        if not warm:
            _, bench, cuts = prepared()
            for cut in cuts:
                bench.store.rows(cut, "test", cuts)
                bench.store.rows(cut, "mirrored", cuts)
            os._exit(0)
        os.waitpid(warm, 0)
        print("| workers | seconds | times as fast | same scores |\n|---|---|---|---|")
        for workers in args.workers:
            url = args.storage or str(Path(folder) / f"{workers}.journal")
            found.append(measured(url, workers, args.real))
            first, last = found[0], found[-1]
            same = "yes" if last[1] == first[1] else "NO"
            print(f"| {workers} | {last[0]:.1f} | {first[0] / last[0]:.2f} | {same} |", flush=True)
    return 0 if all(scores == found[0][1] for _, scores in found) else 1


if __name__ == "__main__":
    sys.exit(main())
