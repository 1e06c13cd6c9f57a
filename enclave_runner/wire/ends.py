"""The hand-off's two ends by name."""

from __future__ import annotations

import socket

from .filedrop import FileDrop
from .shm import SharedMemory
from .start import Start
from .tcp import Stream
from .transport import SPIN_S, End, Exchange, Side


def open_end(door: socket.socket, exchange: Exchange, start: Start, head: bool) -> End:
    """Open this side of the hand-off that `start` names.

    Inside the head worker other threads have work to do, so it spins for half as long.
    """
    side = Side(head=head, instance=int(start.instance, 16), spin=SPIN_S / 2 if head else SPIN_S)
    if start.transport == "shm":
        area = start.area if start.descriptor < 0 else start.descriptor
        return SharedMemory(door, exchange, side, area)
    if start.transport == "file":
        return FileDrop(door, exchange, side, start.area)
    return Stream(door, exchange, side)
