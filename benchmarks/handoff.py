"""Hand-off transports: round trip of a payload between two processes, against plain copies.

    python benchmarks/handoff.py [--mib 0.07 0.8 3 12] [--repetitions 200]

A round trip carries the payload there and an answer of 1000 floats back, as head and tail worker do
it. `copies` is one memcpy of the payload each way; all are interleaved, one thread, medians.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from partopt.enclave_runner.wire.ends import open_end
from partopt.enclave_runner.wire.frames import ANSWER, BOUNDARY
from partopt.enclave_runner.wire.layouts import Layout
from partopt.enclave_runner.wire.messages import listen
from partopt.enclave_runner.wire.shm import area_bytes
from partopt.enclave_runner.wire.start import Start
from partopt.enclave_runner.wire.transport import NAMES, End, Exchange

ANSWERED = (Layout("answer", (1, 1000), "float32"),)


def exchange_of(floats: int) -> Exchange:
    boundary = (Layout("boundary", (1, floats), "float32"),)
    return Exchange(boundary=boundary, answer=ANSWERED, batch=1, slots=2)


def start_of(transport: str, area: str, port: int) -> Start:
    return Start(
        transport=transport,
        area=area,
        slots=2,
        batch=1,
        threads=1,
        queue=1,
        host="127.0.0.1",
        port=port,
        token="00" * 16,
    )


def echo(transport: str, area: str, port: int, floats: int) -> None:
    """The other process: take the payload, give an answer."""
    torch.set_num_threads(1)
    door = socket.create_connection(("127.0.0.1", port))
    end = open_end(door, exchange_of(floats), start_of(transport, area, port), head=False)
    answer = torch.zeros(1, 1000)
    while True:
        got = end.receive()
        assert got is not None
        end.send(ANSWER, got[0].request, [answer], batch=1)


def open_pair(transport: str, floats: int, folder: str) -> tuple[End, subprocess.Popen[bytes]]:
    area = folder
    if transport == "shm":
        area = str(Path(folder) / f"area-{floats}")
        descriptor = os.open(area, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, area_bytes(exchange_of(floats)))
        os.close(descriptor)
    with listen() as door:
        port = door.getsockname()[1]
        command = [sys.executable, __file__, "--echo", transport, area, str(port), str(floats)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        sock, _ = door.accept()
    return open_end(sock, exchange_of(floats), start_of(transport, area, port), head=True), process


def main(sizes: list[float], repetitions: int) -> None:
    torch.set_num_threads(1)
    print(
        f"{'payload MiB':>11} {'copies ms':>10}"
        + "".join(f"{n + ' ms':>10}" for n in NAMES)
        + f"{'limit ms':>10}"
    )
    for mib in sizes:
        floats = int(mib * 2**18)
        payload, there, back = (torch.zeros(1, floats) for _ in range(3))
        times: dict[str, list[float]] = {n: [] for n in (*NAMES, "copies")}
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        with tempfile.TemporaryDirectory(dir=memory) as a, tempfile.TemporaryDirectory() as b:
            pairs = {n: open_pair(n, floats, a if n == "shm" else b) for n in NAMES}
            for i in range(repetitions):
                for name, (end, _) in pairs.items():
                    begun = time.perf_counter()
                    end.send(BOUNDARY, i, [payload], batch=1)
                    end.receive()
                    times[name].append(time.perf_counter() - begun)
                begun = time.perf_counter()
                there.copy_(payload)
                back.copy_(there)
                times["copies"].append(time.perf_counter() - begun)
            for end, process in pairs.values():
                end.close()
                process.wait()
        m = {n: median(v[5:]) * 1e3 for n, v in times.items()}
        limit = 2 * m["copies"] + 0.2
        print(
            f"{mib:>11.2f} {m['copies']:>10.3f}"
            + "".join(f"{m[n]:>10.3f}" for n in NAMES)
            + f"{limit:>10.3f}"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--echo"]:
        echo(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=float, nargs="+", default=[0.07, 0.8, 3.0, 12.0])
    parser.add_argument("--repetitions", type=int, default=200)
    arguments = parser.parse_args()
    main(arguments.mib, arguments.repetitions)
