"""What the benchmarks have in common: options for a model and its photos, and a small panel."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from partopt.attackers.decoder import Decoder
from partopt.attackers.hybrid import Hybrid
from partopt.attackers.linear import Linear
from partopt.attackers.rmle import Rmle


def parser_of(doc: str, model: str) -> argparse.ArgumentParser:
    """A parser that knows which model, weights, preprocessing and photos."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--model", default=model)
    parser.add_argument("--weights", default="DEFAULT")
    parser.add_argument("--mean", type=float, nargs="*")
    parser.add_argument("--std", type=float, nargs="*")
    parser.add_argument("--data", type=Path)
    return parser


def small_decoder(epochs: int) -> Decoder:
    """A decoder for two cores."""
    linear = Linear(max_cells=40_000, max_terms=1300)
    return Decoder(epochs=epochs, width=64, blocks=1, batch=8, patience=0, linear=linear)


def small_white_box(decoder: Decoder, steps: int, tuning: int) -> tuple[Hybrid, Rmle]:
    """White-box attackers for two cores, which choose size, weight and levels on few images."""
    few: dict[str, Any] = {
        "steps": steps,
        "batch": 8,
        "distances": ("l2",),
        "tuning_images": tuning,
    }
    return (
        Hybrid(**few, lr=0.01, tvs=(0.0, 1.0), decoder=decoder),
        Rmle(**few, lr=0.05, tvs=(3.0, 0.3, 30.0), restarts=1),
    )
