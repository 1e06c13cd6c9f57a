"""What is large goes back to the system as soon as it is freed, except while the network runs."""

from __future__ import annotations

import subprocess
import sys

WHAT = """
from partopt.enclave_runner.inside.memory import kept, let_go, trim
def held():
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmRSS")).split()[1]) >> 10
def pieces():
    # Every other piece stays, as with many clients: nothing between them can be trimmed.
    found = [bytearray(b"x") * (1 << 20) for _ in range(64)]
    return found[::2]
let_go()
before = held()
first = pieces()
usual = held() - before
before = held()
with kept():
    second = pieces()
running = held() - before
before = held()
third = pieces()
again = held() - before
print(usual, running, again)
"""


def test_large_pieces_go_back_at_once_and_activations_do_not():
    """Half of 64 MiB is freed in between, without a trim, which inside Gramine would do nothing."""
    environment = {"MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
    done = subprocess.run(
        [sys.executable, "-c", WHAT], capture_output=True, text=True, check=True, env=environment
    )
    usual, running, again = map(int, done.stdout.split())
    assert usual < 40 > again, "half of it is held"
    assert running > 55, "all of it is held"
