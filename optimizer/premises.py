"""What the attacks of a run stand on, as data, and whether a worker's own copies are the same.

A worker computes everything anew from its own model, weights and images; nothing that a result
hangs on comes out of the database. What differs is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..attackers.features import FeatureStore, Making
from ..cache import cache_dir
from ..errors import ConfigError, DataError, PartoptError, UsageError
from ..graph.build import LayerGraph
from ..hashing import hash_json
from ..identity.network import graph_hash
from ..identity.sources import attack_source
from ..images.load import ImageSet, Split, load_images
from ..models.load import LoadedModel
from .attempt import Bench
from .floor import floors_of
from .keys import ATTACK_VERSION


class UnfitError(PartoptError):
    """A worker's own copies are not what a run stands on; says in a sentence what differs."""


@dataclass(frozen=True, kw_only=True)
class Premises:
    """What every attack of a run hangs on; names are for people, hashes decide.

    Attributes:
        version, source: Of the attacks: `ATTACK_VERSION` and a digest of their code.
        model, graph, weights: The model's name, its layer graph's hash, its weights' hash.
        preprocessing: Sizes, mean and std.
        data, images: Where the images came from, and their hash.
        split: Images wanted for training, validation and test.
        minimum: Fewer usable images are refused.
        seed: By which images are chosen, and of the floor.
        side, sides: At which images are rebuilt and compared, in pixels.
        scale: ``corrected`` or ``raw``.
        features: Key of the feature maps, which covers all of the above that they hang on.
    """

    version: int
    source: str
    model: str
    graph: str
    weights: str
    preprocessing: dict[str, Any]
    data: str
    images: str
    split: list[int]
    minimum: int
    seed: int
    side: int
    sides: list[int]
    scale: str
    features: str

    @classmethod
    def of(cls, model: LoadedModel, bench: Bench, wanted: tuple[Split, int], seed: int) -> Premises:
        """Of a run on this machine.

        Args:
            model: The model.
            bench: What its attacks have in common.
            wanted: How many images were wanted, and the least number that will do.
            seed: Of the run.
        """
        store, split = bench.store, wanted[0]
        return cls(
            version=ATTACK_VERSION,
            source=attack_source(),
            model=model.spec,
            graph=graph_hash(store.graph),
            weights=model.weights_hash,
            preprocessing=_as_json(model.preprocessing.values()),
            data=store.images.source,
            images=store.images.digest,
            split=[split.train, split.validation, split.test],
            minimum=wanted[1],
            seed=seed,
            side=bench.resolution,
            sides=list(bench.sides),
            scale=bench.scale,
            features=store.key,
        )

    def as_dict(self) -> dict[str, Any]:
        """As an attribute of a study."""
        return asdict(self)

    @classmethod
    def of_dict(cls, value: Any) -> Premises:
        """From an attribute of a study.

        Raises:
            ConfigError: It is not what `as_dict` gave.
        """
        known = {f.name: f for f in fields(cls)}
        if not isinstance(value, Mapping) or set(value) != set(known):
            raise ConfigError("its premises are not those of this version of partopt")
        texts = ("source", "model", "graph", "weights", "data", "images", "scale", "features")
        numbers = ("version", "minimum", "seed", "side")
        lists = {"split": 3, "sides": 0}
        good = (
            all(isinstance(value[n], str) for n in texts)
            and all(_natural(value[n]) for n in numbers)
            and all(
                isinstance(value[n], list)
                and all(map(_natural, value[n]))
                and len(value[n]) == (count or len(value[n]) or 1)
                for n, count in lists.items()
            )
            and isinstance(value["preprocessing"], dict)
        )
        if not good:
            raise ConfigError("its premises are not those of this version of partopt")
        return cls(**value)

    @property
    def key(self) -> str:
        """Of all of it."""
        return hash_json(self.as_dict())


def _natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32


@dataclass(frozen=True, kw_only=True)
class Own:
    """What a worker has of its own.

    Attributes:
        model: The model, with its weights.
        graph: Its layer graph.
        data: Its copy of the images: a folder, ``ton-iot:FOLDER``, or None for generated ones.
        device: Where it trains.
        cache_bytes: Disk for feature maps.
    """

    model: LoadedModel
    graph: LayerGraph
    data: str | Path | None
    device: str
    cache_bytes: int = 8 << 30

    def bench(self, wanted: Premises) -> Bench:
        """What attacks of the run share, made of our own copies.

        Raises:
            UnfitError: They are not those of the run.
        """
        self._hold_code(wanted)
        self._hold_model(wanted)
        images = self._images(wanted)
        store = FeatureStore(
            cache_dir("features"),
            self.graph,
            self.model.preprocessing,
            images,
            self.model.weights_hash,
            Making(budget_bytes=self.cache_bytes, device=self.device),
        )
        if store.key != wanted.features:
            raise UnfitError(
                f"the run's feature maps of {wanted.model} are made by other code than this "
                "worker's, or of values that no state dict holds; install the same partopt and "
                "the same model code"
            )
        floors = floors_of(images, wanted.side, wanted.sides, wanted.seed)
        return Bench(
            store=store, floors=floors, scale=wanted.scale, seed=wanted.seed, device=self.device
        )

    def _hold_code(self, wanted: Premises) -> None:
        if wanted.version != ATTACK_VERSION:
            raise UnfitError(
                f"the run is of attack version {wanted.version}, this worker's partopt is of "
                f"{ATTACK_VERSION}; install the same version"
            )
        if wanted.source != attack_source():
            raise UnfitError(
                f"the run's attack code is {wanted.source[:12]}, this worker's partopt has "
                f"{attack_source()[:12]}; install the same version"
            )

    def _hold_model(self, wanted: Premises) -> None:
        mine = self.model
        if wanted.graph != graph_hash(self.graph):
            raise UnfitError(
                f"`model` got {mine.spec!r}, whose layer graph is not that of the run's "
                f"{wanted.model!r}; give that model, at the same input size"
            )
        if wanted.weights != mine.weights_hash:
            raise UnfitError(
                f"`weights` got {mine.weights!r} (hash {mine.weights_hash[:12]}), but the run's "
                f"have {wanted.weights[:12]}; give a copy of those"
            )
        if wanted.preprocessing != _as_json(mine.preprocessing.values()):
            raise UnfitError(
                f"`mean`, `std` or `input-size` differ: this worker has "
                f"{_as_json(mine.preprocessing.values())}, the run {wanted.preprocessing}"
            )

    def _images(self, wanted: Premises) -> ImageSet:
        given = "no --data" if self.data is None else repr(str(self.data))
        try:
            images = load_images(
                self.data,
                self.model.preprocessing,
                Split(*wanted.split),
                seed=wanted.seed,
                minimum=wanted.minimum,
            )
        except (DataError, UsageError) as error:
            raise UnfitError(f"{error} (the run's images: {wanted.data})") from None
        if images.digest != wanted.images:
            raise UnfitError(
                f"`data` got {given}, whose images (hash {images.digest[:12]}) are not the run's "
                f"({wanted.data}, hash {wanted.images[:12]}); give a copy of that folder"
            )
        return images


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """As they look when they come out of a database."""
    return dict(json.loads(json.dumps(values)))
