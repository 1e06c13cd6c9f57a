"""What the result of an attack is kept under."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..attackers.base import Attacker
from ..graph.build import Cut
from ..hashing import hash_json
from ..identity.sources import attack_source, file_digest

ATTACK_VERSION = 7  # raise when an attacker's code changes what it can reach


def attack_key(
    cut: Cut, features: str, settings: str, plugins: str, sides: Sequence[int], seed: int
) -> str:
    """Content hash of everything an attack's result depends on.

    Args:
        cut: The cut attacked.
        features: Key of the features: network, preprocessing, images and the code between them.
        settings: `repr` of the attacker that ran, before it was fitted.
        plugins: Digest of the source of attackers that other packages brought.
        sides: At which pictures are compared, in pixels; they are rebuilt at the largest.
        seed: Of the run.
    """
    boundary = [spec.name for spec in cut.boundary]
    source = [ATTACK_VERSION, attack_source(), plugins]
    return hash_json([*source, features, boundary, settings, list(sides), seed])


def plugin_source(attacker: Attacker) -> str:
    """Digest of the files of every class in `attacker` that is none of ours; empty without one."""
    kind = type(attacker)
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    ours = kind.__module__.startswith(f"{__package__.partition('.')[0]}.")
    own = [] if ours else [kind.__qualname__, file_digest(file) if file else ""]
    inner = [plugin_source(v) for v in attacker.settings().values() if isinstance(v, Attacker)]
    parts = [*own, *filter(None, inner)]
    return hash_json(parts) if parts else ""


def on_images(key: str, images: int | None) -> str:
    """The key of an attack that was given only so many training images; None is all of them."""
    return key if images is None else hash_json([key, "images", images])
