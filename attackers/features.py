"""Feature maps of all cuts from one pass over the images, kept on disk in half precision.

Maps are normalised per channel in float32 with training statistics before they are stored: networks
with untrained weights have activations of 1e-8 that half precision would flush to zero, and a map
of zeros looks like protection. A cut whose values are not finite is left out of the pass, with the
reason; its attacks fail. The files themselves are kept by `kept`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import AttackError, PartoptError, StorageError
from ..graph.build import SECOND, Cut, LayerGraph
from ..graph.splitting import boundary_nodes, capture
from ..hashing import derive_seed, hash_json
from ..identity.network import network_hash
from ..identity.sources import feature_source
from ..images.crops import random_crops
from ..images.load import ImageSet, to_float
from ..notices import notice
from ..preprocessing import Preprocessing
from .kept import Shelf, Stats, Writer
from .layout import Place, to_map
from .placing import Mixed, NotFinite, Shapes, measure
from .rows import Rows

PARTS = ("train", "validation", "test")
MIRRORED = "mirrored"
CROPS = "crops-"  # and a number from 1 on: random crops of the training images
_CROPPING = 20260  # seed of all crops: features are kept under what they were made of
_LOOKED_AT = 4  # images that layouts are measured on
_STEEPEST = 1e38  # largest reciprocal of a standard deviation, just below float32's largest number
_LARGEST = 6.0e4  # just below the largest half-precision number


@dataclass(frozen=True, kw_only=True)
class Making:
    """How features are made and kept.

    Attributes:
        budget_bytes: At most so many bytes on disk; other cuts' files make room, oldest first.
        batch: Images a forward pass.
        device: Where the forward pass runs.
        stats_images: Training images that the channel statistics are taken from.
        on_progress: Called with what is being made and the share of it.
    """

    budget_bytes: int = 8 << 30
    batch: int = 16
    device: str = "cpu"
    stats_images: int = 64
    on_progress: Callable[[str, float], None] = lambda what, share: None


class FeatureStore:
    """Normalised feature maps, on disk, made when first asked for.

    Args:
        folder: Where files go; one subfolder a cut.
        graph: The layer graph.
        preprocessing: The model's normalisation.
        images: The images, at the model's input size.
        weights_hash: Part of the key.
        making: How features are made and kept.
    """

    def __init__(
        self,
        folder: Path,
        graph: LayerGraph,
        preprocessing: Preprocessing,
        images: ImageSet,
        weights_hash: str,
        making: Making | None = None,
    ) -> None:
        making = making or Making()
        self.folder = folder
        self.graph = graph
        self.preprocessing = preprocessing
        self.images = images
        self.making = making
        self.batch = graph.fixed_batch or making.batch
        self.stats_images = min(making.stats_images, images.split.train)
        self.passes = 0
        self._alone = False
        self._places: dict[int, list[Place]] = {}
        self.key = hash_json(
            [
                3,
                feature_source(),
                network_hash(graph),
                weights_hash,
                preprocessing.values(),
                images.digest,
                self.stats_images,
            ]
        )
        self.shelf = Shelf(folder, self.key, making.budget_bytes)
        self._refused: dict[int, str] = {}  # why a cut has no features
        self._one_at_a_time = False

    def rows(self, cut: Cut, part: str, also: Sequence[Cut] = ()) -> Rows:
        """Maps of one part: ``train``, ``validation``, ``test``, or training images as `MIRRORED`
        and `CROPS` say.

        Where they are missing, one pass over the images makes them for `cut` and for as many of
        the cuts in `also` as the byte budget holds. While the rows live, no process evicts them.

        Raises:
            AttackError: The head up to `cut` gives values that are not finite.
            StorageError: The disk is full or refuses.
        """
        self._refuse(cut)
        pin = self.shelf.pin(cut)
        count = self._count(part)
        found = self.shelf.rows(cut, part, count, pin)
        if found is None:
            with self.shelf.making(self._waiting):
                found = self.shelf.rows(cut, part, count, pin)  # another process may have made it
                if found is None:
                    self._make([cut, *(c for c in also if c.node != cut.node)], part)
                    self._refuse(cut)
                    found = self.shelf.rows(cut, part, count, pin)
        if found is None:
            raise StorageError(
                f"features of {cut.name!r} do not stay in {str(self.folder)!r}; see whether "
                "something else writes there, and run the same command again"
            )
        return Rows([found])

    def _refuse(self, cut: Cut) -> None:
        if cut.node in self._refused:
            raise AttackError(self._refused[cut.node])

    def _waiting(self) -> None:
        self.making.on_progress("features: waiting for another run that makes them", 0.0)

    def maps_of(self, cut: Cut, images: np.ndarray) -> np.ndarray:
        """Maps of other images (uint8, at the model's input size), as `rows` would hold them."""
        scaling = self._scaling(cut)
        try:
            return np.concatenate(
                [_normal(maps[0], *scaling) for _, maps in self._forward([cut], images, "features")]
            )
        except _NotFiniteError as error:
            self._not_finite(cut, error.values)
            self._refuse(cut)
            raise

    def _scaling(self, cut: Cut) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and reciprocal standard deviation of a cut, on the device."""
        stats = self._stats([cut])
        self._refuse(cut)
        return self._on_device(stats[cut.node])

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
        module = capture(self.graph, [cut]).to(self.making.device)
        mean, scale = self._scaling(cut)

        def run(unit: torch.Tensor) -> torch.Tensor:
            parts = unit.split(self._fixed or max(1, len(unit)))
            maps = torch.cat([self._maps([cut], module, part)[0] for part in parts])
            return (maps - mean) * scale

        return run

    def places(self, cut: Cut) -> list[Place]:
        """Where images and cells lie in the boundary tensors of `cut`, measured when first asked.

        Raises:
            AttackError: No image has a part of its own.
        """
        self._place([cut])
        self._refuse(cut)
        return self._places[cut.node]

    def unplaced(self, cut: Cut) -> str:
        """Why attackers that learn from pairs cannot settle `cut`, or nothing.

        Where cells of the picture could not be found although there may be some, a fully connected
        attacker with more pairs than values says something by failing, or one that descends
        through the public head; one that relies on the shape's layout does not.

        Raises:
            AttackError: As `places`.
        """
        trained = self.images.split.train
        for place, spec in zip(self.places(cut), cut.boundary, strict=True):
            values = math.prod(spec.shape) // (self.graph.inputs[0].shape[0] or 1)
            if not place.measured and values > trained:
                return f"{spec.name}, {values} values for {trained} training images: {place.why}"
        return ""

    @property
    def _fixed(self) -> int | None:
        """The only batch size that passes may have: the graph's, or 1 where images mix."""
        return 1 if self._alone else self.graph.fixed_batch

    def _place(self, cuts: Sequence[Cut]) -> None:
        """Find the places of cuts whose places are not known, in one set of passes."""
        missing = []
        for cut in cuts:
            if cut.node in self._places or cut.node in self._refused:
                continue
            kept = self.shelf.note(cut, "places")
            if kept is None:
                missing.append(cut)
                continue
            self._places[cut.node] = [Place.of_dict(p) for p in kept["places"]]
            if kept["alone"]:
                self._alone, self.batch = True, 1
        if missing:
            self._measure_places(missing)

    def _measure_places(self, cuts: Sequence[Cut]) -> None:
        module = capture(self.graph, cuts).to(self.making.device)
        images = to_float(self.images.images[:_LOOKED_AT]).to(self.making.device)

        def run(unit: torch.Tensor) -> list[list[torch.Tensor]]:
            return [list(group) for group in module(self.preprocessing.normalise(unit))]

        shapes = [[self._shapes(i) for i in boundary_nodes(self.graph, c)] for c in cuts]
        found = measure(run, shapes, images, fixed=self._fixed, batch=self.batch)
        if any(isinstance(f, Mixed) for f in found) and self.graph.fixed_batch is None:
            # A deployed head that gets one picture at a time has nothing to mix.
            self._alone, self.batch = True, 1
            found = measure(run, shapes, images, fixed=1)
        for cut, places in zip(cuts, found, strict=True):
            if isinstance(places, NotFinite):
                self._not_finite(cut, places.values)
                continue
            if isinstance(places, AttackError):
                self._refused[cut.node] = str(places)
                continue
            self._places[cut.node] = places
            kept = {"alone": self._alone, "places": [p.as_dict() for p in places]}
            self.shelf.keep_note(cut, "places", kept)

    def _shapes(self, node: int) -> Shapes:
        spec = self.graph.nodes[node].spec
        assert spec is not None
        first = self.graph.inputs[0].shape[0]
        second = self.graph.second_shapes[self.graph.nodes[node].fx_name]
        return Shapes(spec.name, spec.shape, second, (first, first + SECOND))

    def _maps(
        self, cuts: Sequence[Cut], module: torch.nn.Module, unit: torch.Tensor
    ) -> list[torch.Tensor]:
        """One map a cut; a batch too small for the graph is filled up for the pass."""
        real, wanted = len(unit), self._fixed or 0
        if real < wanted:
            unit = torch.cat([unit, unit[:1].expand(wanted - real, -1, -1, -1)])
        groups = module(self.preprocessing.normalise(unit))
        return [to_map(g, self.places(c))[:real] for c, g in zip(cuts, groups, strict=True)]

    def _images_of(self, part: str) -> np.ndarray:
        if part == MIRRORED:
            return self.images.part("train")[..., ::-1]
        if part.startswith(CROPS):
            return self.crops(int(part.removeprefix(CROPS)))
        return self.images.part(part)

    def crops(self, number: int) -> np.ndarray:
        """Random crops of the training images, uint8 at the model's input size; `number` from 1."""
        return random_crops(self.images.part("train"), derive_seed(_CROPPING, number))

    def _bytes(self, cut: Cut, parts: Sequence[str]) -> int:
        per_batch = sum(spec.bytes for spec in cut.boundary) / 2  # float32 -> half
        per_image = per_batch / (self.graph.inputs[0].shape[0] or 1)
        return int(per_image * sum(self._count(p) for p in parts))

    def _count(self, part: str) -> int:
        known = part in PARTS
        return len(self.images.part(part)) if known else self.images.split.train

    def _make(self, wanted: Sequence[Cut], part: str) -> None:
        """Make a part of the first cut in `wanted`, and of as many others as fit."""
        try:
            self._place(wanted)
        except (PartoptError, RuntimeError, ValueError, MemoryError):
            self._one_at_a_time = True
            self._place(wanted[:1])
        self._refuse(wanted[0])
        wanted = [c for c in wanted if c.node not in self._refused]
        parts = list(PARTS) if part in PARTS else [part]
        first = wanted[0]
        chosen, needed = [first], self._bytes(first, parts)
        room = self.shelf.room(first) - needed
        for cut in wanted[1:] if not self._one_at_a_time else ():
            size, there = self._bytes(cut, parts), self.shelf.bytes_of(cut)
            if size + there > room or cut.node in self._refused or self.shelf.has(cut, part):
                continue
            chosen.append(cut)
            room, needed = room - size - there, needed + size
        over = self.shelf.make_room(needed, chosen)
        if over > 0:
            notice(
                f"features of {first.name!r} take the cache {over / 2**20:.0f} MiB over its "
                f"{self.making.budget_bytes / 2**20:.0f} MiB: the rest is in use; --feature-cache "
                "gives it more"
            )
        try:
            self._make_together(chosen, parts)
        except StorageError:
            raise
        except (PartoptError, RuntimeError, ValueError, MemoryError):
            if len(chosen) == 1:
                raise
            # One of them breaks the pass: each gets its own, and only its own fails.
            self._one_at_a_time = True
            self._make_together([first], parts)

    def _make_together(self, cuts: Sequence[Cut], parts: Sequence[str]) -> None:
        stats = self._stats(sorted(cuts, key=lambda c: c.node))
        good = [c for c in sorted(cuts, key=lambda c: c.node) if c.node in stats]
        if cuts[0].node in stats:
            self._store(good, parts, stats)

    def _forward(
        self, cuts: Sequence[Cut], images: np.ndarray, what: str
    ) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """Maps of all cuts, a batch at a time."""
        module = capture(self.graph, cuts).to(self.making.device)
        self._place(cuts)
        self.passes += 1
        with torch.inference_mode():
            for start in range(0, len(images), self.batch):
                unit = to_float(images[start : start + self.batch]).to(self.making.device)
                yield len(unit), self._maps(cuts, module, unit)
                self.making.on_progress(what, min(1.0, (start + len(unit)) / len(images)))

    def _stats(self, cuts: Sequence[Cut]) -> dict[int, Stats]:
        """Per channel mean and reciprocal standard deviation over training images, (1, C, 1, 1).

        A cut whose values are not finite is missing from the result, and refused from now on.
        """
        found: dict[int, Stats] = {}
        missing = []
        for cut in cuts:
            kept = None if cut.node in self._refused else self.shelf.stats(cut)
            if kept is not None:
                found[cut.node] = kept
            elif cut.node not in self._refused:
                missing.append(cut)
        self._place(missing)
        missing = [cut for cut in missing if cut.node not in self._refused]
        if missing:
            found |= self._measure_stats(missing)
        return found

    def _measure_stats(self, cuts: Sequence[Cut]) -> dict[int, Stats]:
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
                self._not_finite(cut, total)
                continue
            mean = total / count
            variance = (squares / count - mean**2).clamp_min(0)
            # Below the rounding error of float32 a channel is constant, whatever its scale.
            constant = variance.sqrt() <= 1e-6 * largest
            scale = torch.where(constant, 0.0, 1.0 / variance.sqrt().clamp_min(1e-300))
            # Only of values below float32's normal range, of which few bits are left.
            scale = scale.clamp_max(_STEEPEST).float()
            if not bool(torch.isfinite(scale).all()):
                self._not_finite(cut, scale)
                continue
            shape = (1, -1, 1, 1)
            arrays = (
                mean.float().view(shape).cpu().numpy(),
                scale.view(shape).cpu().numpy(),
            )
            self.shelf.keep_stats(cut, arrays)
            result[cut.node] = arrays
        return result

    def _not_finite(self, cut: Cut, values: torch.Tensor | np.ndarray) -> None:
        """Refuse a cut from now on; `values` are some that show why."""
        array = np.asarray(values if isinstance(values, np.ndarray) else values.cpu())
        seen = [
            name
            for name, there in (
                ("NaN", np.isnan(array)),
                ("inf", array == np.inf),
                ("-inf", array == -np.inf),
            )
            if there.any()
        ]
        what = f" ({', '.join(seen)})" if seen else ""
        self._refused[cut.node] = (
            f"the head up to {cut.name!r} gives values that are not finite{what}; "
            "check the weights and the preprocessing"
        )

    def _on_device(self, stats: Stats) -> tuple[torch.Tensor, torch.Tensor]:
        mean, scale = (torch.from_numpy(a).to(self.making.device) for a in stats)
        return mean, scale

    def _store(self, cuts: Sequence[Cut], parts: Sequence[str], stats: dict[int, Stats]) -> None:
        for part in parts:
            cuts = [c for c in cuts if c.node not in self._refused]
            if not cuts:
                return
            scaling = [self._on_device(stats[c.node]) for c in cuts]
            writers: list[Writer] = []
            try:
                writers += (self.shelf.writer(cut, part) for cut in cuts)
                for _, maps in self._forward(cuts, self._images_of(part), f"features ({part})"):
                    for cut, m, how, writer in zip(cuts, maps, scaling, writers, strict=True):
                        if cut.node in self._refused:
                            continue
                        try:
                            writer.add(_normal(m, *how))
                        except _NotFiniteError as error:
                            self._not_finite(cut, error.values)
                for cut, writer in zip(cuts, writers, strict=True):
                    if cut.node not in self._refused:
                        writer.keep()
            finally:
                for writer in writers:
                    writer.drop()


class _NotFiniteError(ArithmeticError):
    """Maps that cannot be normalised."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values


def _normal(maps: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> np.ndarray:
    """Normalised, as half precision holds it; clamping would make a picture of infinities."""
    normal = (maps - mean) * scale
    if not bool(torch.isfinite(normal).all()):
        raise _NotFiniteError(maps.detach().cpu().numpy())
    return normal.clamp_(-_LARGEST, _LARGEST).half().contiguous().cpu().numpy()
