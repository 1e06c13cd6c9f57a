"""A job: one attack, as data in a waiting trial; whoever has the same inputs can make it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..attackers.base import Attacker
from ..errors import ConfigError
from ..graph.build import Cut
from .keys import attack_key, on_images, plugin_source
from .recipes import made_of
from .terms import AttackTerms

MOST_ALSO = 8  # further cuts whose features the same pass should make


@dataclass(frozen=True, kw_only=True)
class JobOrder:
    """What a worker is to do.

    Attributes:
        key: Under which the result is kept. A worker computes it from its own inputs, and leaves a
            job alone whose key it does not come to.
        cut: Name of the cut.
        label: The attacker's name in the search.
        recipe: The attacker, as in `recipes`.
        terms: How the attack is to go.
        threads: Compute threads: sums of floating point depend on them.
        also: Names of cuts that will be asked for next.
        pictures: Whether reconstructions are kept.
        value: The trial's value, milliseconds.
        second_for: Of a second try with safer settings, the key of the first.
    """

    key: str
    cut: str
    label: str
    recipe: dict[str, Any]
    terms: AttackTerms
    threads: int
    also: list[str]
    pictures: bool
    value: float
    second_for: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As an attribute of a trial."""
        return asdict(self)

    @classmethod
    def of_dict(cls, value: Any) -> JobOrder:
        """From an attribute of a trial.

        Raises:
            ConfigError: It is not what `as_dict` gave.
        """
        try:
            terms = AttackTerms(**value["terms"])
            order = cls(**{**value, "terms": terms})
        except (TypeError, KeyError) as error:
            raise ConfigError(f"a job is not one of this version's ({error})") from None
        wrong = [n for n, good in _good(order) if not good]
        if wrong:
            raise ConfigError(f"a job is not one of this version's ({wrong[0]} is out of range)")
        return order

    def attacker(self) -> Attacker:
        """The attacker, not fitted."""
        return made_of(self.recipe)

    def key_of(self, cut: Cut, attacker: Attacker, features: str, sides: tuple[int, ...]) -> str:
        """The key by a worker's own inputs."""
        made_by = plugin_source(attacker)
        key = attack_key(cut, features, repr(attacker), made_by, sides, self.terms.seed)
        return on_images(key, self.terms.images)


def _good(order: JobOrder) -> list[tuple[str, bool]]:
    terms = order.terms
    numbers = [terms.threshold, order.value, terms.leaks_from or 0.0]
    return [
        ("key", isinstance(order.key, str) and len(order.key) == 64),
        ("cut", isinstance(order.cut, str)),
        ("label", isinstance(order.label, str)),
        ("recipe", isinstance(order.recipe, Mapping)),
        ("also", _names(order.also)),
        ("threads", _whole(order.threads, 1, 4096)),
        ("pictures", isinstance(order.pictures, bool)),
        ("second_for", order.second_for is None or isinstance(order.second_for, str)),
        ("seed", _whole(terms.seed, 0, 2**32 - 1)),
        ("ceiling", _whole(terms.ceiling, 1, 64)),
        ("images", terms.images is None or _whole(terms.images, 1, 2**32)),
        ("private", isinstance(terms.private, bool)),
        ("threshold", all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)),
    ]


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)
