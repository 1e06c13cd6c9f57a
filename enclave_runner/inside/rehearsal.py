"""Do all that a worker does and print what was opened; run by `footprint.look`.

    python -m partopt.enclave_runner.inside.rehearsal BUNDLE/head BATCH < key

prints one line of JSON. Unsealing, decoding each image format, a handshake and a forward pass: what
that opens is what an enclave must be allowed to open. With a batch of 0 and a shape behind it, the
folder is a profile worker's.
"""

from __future__ import annotations

import sys

_opened: set[str] = set()


def _note(event: str, args: tuple[object, ...]) -> None:
    if event == "open" and args and isinstance(args[0], str):
        _opened.add(args[0])


if __name__ == "__main__":
    sys.addaudithook(_note)  # before anything else is imported

import codecs
import importlib
import io
import json
import os
import socket
import threading
from collections.abc import Iterator
from importlib.util import source_from_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..program.parts import WEIGHTS_OF, Part

_SYSTEM = ("/proc/", "/sys/", "/dev/")


def _memory(field: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _mapped() -> set[str]:
    with open("/proc/self/maps") as file:
        lines = [line.split(maxsplit=5) for line in file]
    return {p[5].strip() for p in lines if len(p) == 6 and p[5].startswith("/")}


def _other_names(path: str) -> set[str]:
    """The names in its folder that lead to a library: the loader opens those."""
    folder = Path(path).parent
    stem = Path(path).name.split(".so")[0]
    return {
        str(p) for p in folder.glob(f"{stem}.so*") if p.is_symlink() and p.resolve() == Path(path)
    }


def _pictures(side: int) -> Iterator[bytes]:
    """One of each format and of each kind of pixels that is read in a way of its own."""
    plain = Image.new("RGB", (side + 9, side))
    turned = Image.Exif()
    turned[0x0112] = 6
    modes = {
        "PNG": ("I;16", "P", "1", "L", "LA", "RGBA", "RGB"),
        "WEBP": ("RGBA", "RGB"),
        "BMP": ("P", "1", "L", "RGB"),
        "JPEG": ("CMYK", "L", "RGB"),
    }
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("MPO", "RGB", {"save_all": True, "append_images": [plain]}),
        ("WEBP", "RGB", {"lossless": True}),
        *(("JPEG", mode, {"progressive": True}) for mode in ("CMYK", "RGB")),
        *((kind, mode, {}) for kind, several in modes.items() for mode in several),
    ]
    for kind, mode, how in kinds:
        picture = Image.new(mode, plain.size) if mode == "I;16" else plain.convert(mode)
        for exif in [{}] if kind == "BMP" else [{}, {"exif": turned.tobytes()}]:
            data = io.BytesIO()
            picture.save(data, kind, **how, **exif)
            yield data.getvalue()


def _rehearse_head(folder: Path, batch: int, key: bytes) -> None:
    """All that a head worker does with an image."""
    from ..wire.messages import decode, encode
    from ..wire.proofs import proof, proven
    from ..wire.session import accept, connect
    from .decoding import decoded

    part = Part.read(folder)
    engine = importlib.import_module(f"..program.{part.engine}_engine", __package__).ENGINE
    engine.prepare(1)
    program = engine.load(folder, part, key or None, 1)
    assert part.preprocessing is not None
    for data in _pictures(part.preprocessing.input_size):
        one = decoded(data, part.preprocessing, part.limits)
    for size in {1, batch}:
        program(np.concatenate([one] * size))
    ours, theirs = socket.socketpair()
    thread = threading.Thread(
        target=lambda: accept(theirs, "native", lambda _: b"", 1 << 16).receive()
    )
    thread.start()
    connect(ours, lambda hello: None, 1 << 16)[0].send(encode({"id": 1}))
    thread.join()
    decode(encode({"id": 1}))
    proven(proof(bytes(32), b""), b"")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as door:
        door.bind(("127.0.0.1", 0))


def _clients_worst(folder: Path) -> int:
    """Memory that clients may make a head worker take, beyond what was rehearsed."""
    from ..wire.accepted import worst_case_bytes

    part = Part.read(folder)
    answer = sum(layout.nbytes(1) for layout in part.answers)
    return worst_case_bytes(part.limits.image_pixels, part.limits.image_bytes, answer)


def _rehearse_probe(folder: Path, shape: list[int], key: bytes) -> None:
    """A profile worker's pass."""
    if (folder / WEIGHTS_OF["ort"]).is_file():
        from .ort_probe import accounted, opened

        accounted(opened(folder, shape, key), shape, 1)
        return
    from ..program.timed import passed
    from .probe import prepare

    passed(*prepare(folder, shape, 0, "cpu", key), [])


def main(folder: Path, batch: int, shape: list[int]) -> None:
    """Rehearse and print."""
    codecs.lookup("ascii")  # what Python falls back on where no locale is set
    # The worker itself, and not the other one: each file more is one more to trust.
    importlib.import_module(".archived", __package__)
    engine = Part.read(folder).engine if batch else ""
    probe = "ort_probe" if (folder / WEIGHTS_OF["ort"]).is_file() else "probe"
    importlib.import_module(f".{engine}_head" if batch else f".{probe}", __package__)
    runtime = _memory("VmRSS") - _memory("RssFile")
    key = bytes.fromhex(sys.stdin.read().strip())
    if batch:
        _rehearse_head(folder, batch, key)
    else:
        _rehearse_probe(folder, shape, key)
    libraries = _mapped()
    modules = {
        name
        for m in list(sys.modules.values())
        for name in [getattr(m, "__file__", None)]
        if isinstance(name, str)
    }
    files = {os.path.abspath(f) for f in _opened | modules | libraries} - {
        os.path.abspath(__file__)
    }
    # Inside Gramine every file is of the year 1970, so Python compiles each source anew.
    compiled = {f for f in files if f.endswith(".pyc")}
    files |= {source_from_cache(f) for f in compiled if "__pycache__" in f}
    files -= {f for f in compiled if "__pycache__" in f}
    for library in libraries:
        files |= _other_names(library)
    start = [Path(sys.prefix) / "pyvenv.cfg", *(Path(p) for p in sys.path)]
    for path in start:
        files |= {str(p) for p in path.glob("*.pth")} if path.is_dir() else {str(path)}
    inside = os.path.abspath(folder)
    kept = sorted(f for f in files if os.path.isfile(f) and not f.startswith((*_SYSTEM, inside)))
    seen = {
        "files": kept,
        "libraries": sum(os.path.getsize(f) for f in libraries if os.path.isfile(f)),
        "runtime": runtime,
        "peak": _memory("VmHWM") - _memory("RssFile"),
        "clients": _clients_worst(folder) if batch else 0,
        "prefixes": sorted({sys.prefix, sys.base_prefix}),
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), [int(n) for n in sys.argv[3:]])
