"""The other process of the hand-off measurement: copies each payload out and answers.

Run by path with the standard library alone, so that it starts in milliseconds. The first 64 bytes
of the shared file hold three words: counter and length, written by the parent at 0 and 8, and the
counter last answered, written by this process at 16. A byte on stdin says that something has come,
one on stdout that it was taken, as the runner's doors do.
"""

import mmap
import os
import select
import struct
import sys
import time

SPIN_S = 200e-6


def main(path: str, size: int) -> None:
    """Answer until the parent writes a negative counter or goes away."""
    fd = os.open(path, os.O_RDWR)
    memory = mmap.mmap(fd, size)
    view = memoryview(memory)
    private = bytearray(size)
    seen = 0
    while True:
        begun = time.perf_counter()
        while True:
            counter, length = struct.unpack_from("<qq", memory, 0)
            if counter != seen:
                break
            if time.perf_counter() - begun > SPIN_S:
                select.select([0], [], [])
                if not os.read(0, 4096):
                    return
        if counter < 0:
            return
        seen = counter
        private[:length] = view[64 : 64 + length]
        struct.pack_into("<q", memory, 16, seen)
        os.write(1, b"!")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
