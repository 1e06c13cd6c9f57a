"""Feature maps of all cuts from one pass over the images, kept on disk in half precision.

Maps are normalised per channel in float32 with training statistics before they are stored: networks
with untrained weights have activations of 1e-8 that half precision would flush to zero, and a map
of zeros looks like protection. Files appear whole or not at all and are keyed by content.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..cache import written_whole
from ..datasets import ImageSet, to_float
from ..errors import AttackError
from ..graph import Cut, LayerGraph
from ..hashing import hash_json
from ..preprocessing import Preprocessing
from ..splitting import capture
from .layout import to_map
from .rows import Rows

PARTS = ("train", "validation", "test")
MIRRORED = "mirrored"
_LARGEST = 6.0e4  # just below the largest half-precision number


class FeatureStore:
    """Normalised feature maps, on disk, made when first asked for.

    Args:
        folder: Where files go; one subfolder a cut.
        graph: The layer graph.
        preprocessing: The model's normalisation.
        images: The images, at the model's input size.
        weights_hash: Part of the key.
        budget_bytes: At most so many bytes on disk; other cuts' files make room, oldest first.
        batch: Images a forward pass.
        device: Where the forward pass runs.
        stats_images: Training images that the channel statistics are taken from.
    """

    def __init__(
        self,
        folder: Path,
        graph: LayerGraph,
        preprocessing: Preprocessing,
        images: ImageSet,
        weights_hash: str,
        *,
        budget_bytes: int = 8 << 30,
        batch: int = 16,
        device: str = "cpu",
        stats_images: int = 64,
    ) -> None:
        self.folder = folder
        self.graph = graph
        self.preprocessing = preprocessing
        self.images = images
        self.budget_bytes = budget_bytes
        self.batch = graph.fixed_batch or batch
        self.device = device
        self.stats_images = min(stats_images, images.split.train)
        self.on_progress: Callable[[str, float], None] | None = None
        self.passes = 0
        self.key = hash_json(
            [
                2,
                weights_hash,
                str(graph.module.graph),
                preprocessing.as_dict(),
                images.digest,
                self.stats_images,
            ]
        )

    def rows(self, cut: Cut, part: str, also: Sequence[Cut] = ()) -> Rows:
        """Maps of one part (``train``, ``validation``, ``test`` or ``mirrored`` training images).

        Where they are missing, one pass over the images makes them for `cut` and for as many of
        the cuts in `also` as the byte budget holds.
        """
        if not self._has(cut, part):
            with self._locked():
                if not self._has(cut, part):
                    self._make([cut, *(c for c in also if c.node != cut.node)], part)
        folder = self._folder(cut)
        shape = json.loads((folder / f"{part}.json").read_text())["shape"]
        return Rows([(folder / f"{part}.f16", tuple(shape), "float16")])

    def maps_of(self, cut: Cut, images: np.ndarray) -> np.ndarray:
        """Maps of other images (uint8, at the model's input size), as `rows` would hold them."""
        scaling = self._on_device(self._stats([cut])[cut.node])
        return np.concatenate(
            [_normal(maps[0], *scaling) for _, maps in self._forward([cut], images, "features")]
        )

    def maps_of_all(self, cuts: Sequence[Cut], images: np.ndarray) -> list[np.ndarray]:
        """As `maps_of`, for several cuts in one pass."""
        stats = self._stats(cuts)
        scaling = [self._on_device(stats[c.node]) for c in cuts]
        parts: list[list[np.ndarray]] = [[] for _ in cuts]
        for _, maps in self._forward(cuts, images, "features"):
            for i, m in enumerate(maps):
                parts[i].append(_normal(m, *scaling[i]))
        return [np.concatenate(p) for p in parts]

    def head(self, cut: Cut) -> Callable[[torch.Tensor], torch.Tensor]:
        """The public head as white-box attackers use it: images in [0, 1] to normalised maps."""
        module = capture(self.graph, [cut]).to(self.device)
        mean, scale = self._on_device(self._stats([cut])[cut.node])

        def run(unit: torch.Tensor) -> torch.Tensor:
            parts = unit.split(self.graph.fixed_batch or max(1, len(unit)))
            maps = torch.cat([self._maps(module, part)[0] for part in parts])
            return (maps - mean) * scale

        return run

    def _maps(self, module: torch.nn.Module, unit: torch.Tensor) -> list[torch.Tensor]:
        """One map a cut; a batch too small for the graph is filled up for the pass."""
        real, wanted = len(unit), self.graph.fixed_batch or 0
        if real < wanted:
            unit = torch.cat([unit, unit[:1].expand(wanted - real, -1, -1, -1)])
        groups = module(self.preprocessing.normalise(unit))
        return [to_map(group)[:real] for group in groups]

    def _folder(self, cut: Cut) -> Path:
        names = hash_json([spec.name for spec in cut.boundary])[:12]
        return self.folder / self.key[:24] / f"{cut.name[:60]}-{names}"

    def _has(self, cut: Cut, part: str) -> bool:
        return (self._folder(cut) / f"{part}.json").is_file()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time makes features; the others then find them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _images_of(self, part: str) -> np.ndarray:
        if part == MIRRORED:
            return self.images.part("train")[..., ::-1]
        return self.images.part(part)

    def _bytes(self, cut: Cut, parts: Sequence[str]) -> int:
        per_batch = sum(spec.bytes for spec in cut.boundary) / 2  # float32 -> half
        per_image = per_batch / (self.graph.inputs[0].shape[0] or 1)
        return int(per_image * sum(len(self._images_of(p)) for p in parts))

    def _make(self, wanted: Sequence[Cut], part: str) -> None:
        parts = [MIRRORED] if part == MIRRORED else list(PARTS)
        chosen: list[Cut] = []
        room = self.budget_bytes
        for cut in wanted:
            size = self._bytes(cut, parts)
            if chosen and (size > room or self._has(cut, part)):
                continue
            chosen.append(cut)
            room -= size
        self._make_room(self.budget_bytes - room, keep={self._folder(c) for c in chosen})
        chosen.sort(key=lambda c: c.node)
        stats = self._stats(chosen)
        self._store(chosen, parts, stats)

    def _forward(
        self, cuts: Sequence[Cut], images: np.ndarray, what: str
    ) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """Maps of all cuts, a batch at a time."""
        module = capture(self.graph, cuts).to(self.device)
        self.passes += 1
        with torch.inference_mode():
            for start in range(0, len(images), self.batch):
                unit = to_float(images[start : start + self.batch]).to(self.device)
                yield len(unit), self._maps(module, unit)
                if self.on_progress is not None:
                    self.on_progress(what, min(1.0, (start + len(unit)) / len(images)))

    def _stats(self, cuts: Sequence[Cut]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Per channel mean and reciprocal standard deviation over training images, (1, C, 1, 1)."""
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        missing = []
        for cut in cuts:
            path = self._folder(cut) / "stats.npz"
            if path.is_file():
                with np.load(path, allow_pickle=False) as data:
                    found[cut.node] = (data["mean"], data["scale"])
            else:
                missing.append(cut)
        if missing:
            found |= self._measure_stats(missing)
        return found

    def _measure_stats(self, cuts: Sequence[Cut]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        sums: list[list[torch.Tensor]] = []
        cells = [0] * len(cuts)
        images = self.images.part("train")[: self.stats_images]
        for _, maps in self._forward(cuts, images, "channel statistics"):
            for i, m in enumerate(maps):
                wide = m.double()
                part = [wide.sum((0, 2, 3)), (wide**2).sum((0, 2, 3)), wide.abs().amax((0, 2, 3))]
                if len(sums) <= i:
                    sums.append(part)
                else:
                    sums[i] = [
                        sums[i][0] + part[0],
                        sums[i][1] + part[1],
                        torch.maximum(sums[i][2], part[2]),
                    ]
                cells[i] += m.shape[0] * m.shape[2] * m.shape[3]
        result = {}
        for cut, (total, squares, largest), count in zip(cuts, sums, cells, strict=True):
            if not bool(torch.isfinite(squares).all()):
                raise AttackError(
                    f"the head up to {cut.name!r} gives values that are not finite; "
                    "check the weights and the preprocessing"
                )
            mean = total / count
            variance = (squares / count - mean**2).clamp_min(0)
            # Below the rounding error of float32 a channel is constant, whatever its scale.
            constant = variance.sqrt() <= 1e-6 * largest
            scale = torch.where(constant, 0.0, 1.0 / variance.sqrt().clamp_min(1e-300))
            shape = (1, -1, 1, 1)
            arrays = (
                mean.float().view(shape).cpu().numpy(),
                scale.float().view(shape).cpu().numpy(),
            )
            folder = self._folder(cut)
            with written_whole(folder / "stats.npz") as path, open(path, "wb") as file:
                np.savez(file, mean=arrays[0], scale=arrays[1])
            result[cut.node] = arrays
        return result

    def _on_device(self, stats: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        mean, scale = (torch.from_numpy(a).to(self.device) for a in stats)
        return mean, scale

    def _store(
        self,
        cuts: Sequence[Cut],
        parts: Sequence[str],
        stats: dict[int, tuple[np.ndarray, np.ndarray]],
    ) -> None:
        scaling = [self._on_device(stats[c.node]) for c in cuts]
        for part in parts:
            images = self._images_of(part)
            shapes: list[tuple[int, ...]] = []
            with contextlib.ExitStack() as stack:
                files: list[BinaryIO] = []
                for cut in cuts:
                    path = stack.enter_context(written_whole(self._folder(cut) / f"{part}.f16"))
                    files.append(stack.enter_context(open(path, "wb")))
                for _, maps in self._forward(cuts, images, f"features ({part})"):
                    shapes = [tuple(m.shape[1:]) for m in maps]
                    for m, how, file in zip(maps, scaling, files, strict=True):
                        file.write(_normal(m, *how).data)
                for file in files:
                    file.flush()
            for cut, shape in zip(cuts, shapes, strict=True):
                with written_whole(self._folder(cut) / f"{part}.json") as path:
                    path.write_text(json.dumps({"shape": [len(images), *shape]}))

    def _make_room(self, needed: int, keep: set[Path]) -> None:
        """Remove the oldest cuts' files until `needed` more bytes fit the budget."""
        folders = [p for p in self.folder.glob("*/*") if p.is_dir() and p not in keep]
        sizes = {p: sum(f.stat().st_size for f in p.iterdir() if f.is_file()) for p in folders}
        used = sum(sizes.values())
        for path in sorted(folders, key=lambda p: p.stat().st_mtime):
            if used + needed <= self.budget_bytes:
                break
            shutil.rmtree(path, ignore_errors=True)
            used -= sizes[path]


def _normal(maps: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> np.ndarray:
    """Normalised, as half precision holds it."""
    normal = ((maps - mean) * scale).clamp_(-_LARGEST, _LARGEST)
    return normal.half().contiguous().cpu().numpy()
