"""Find where to cut a network, attacked with photos of one's own.

    python examples/own_photos/find.py photos/
    python examples/own_photos/find.py photos/ --model mobilenet_v2 --budget standard

The folder holds images like those that are to be protected: the budget `quick`, which only screens,
takes 400 of them, `standard` 1,400.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import partopt


def main(arguments: list[str] | None = None) -> int:
    """Print every cut's verdict and write the split config; 0 where a cut was found, else 3."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder of images, sub-folders included")
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--weights", default="DEFAULT", help="DEFAULT, none or a file")
    parser.add_argument("--input-size", type=int, help="the model's own, if not given")
    parser.add_argument("--cuts", default="clean", help="clean, all, stage or paper")
    parser.add_argument("--ssim", type=float, default=0.2, help="scores at or above it leak")
    parser.add_argument("--budget", help="quick, standard or full")
    parser.add_argument("--out", type=Path, default=Path("own.split.json"))
    given = parser.parse_args(arguments)

    result = partopt.find(
        given.model,
        ssim=given.ssim,
        weights=given.weights,
        data=given.photos,
        cuts=given.cuts,
        input_size=given.input_size,
        budget=given.budget,
    )
    config = result.config
    for row in config.cuts:
        score = "-" if row.score is None else f"{row.score:.2f} (at most {row.high:.2f})"
        print(f"{row.name:40} {score:24} {row.status}")
    for warning in config.warnings:
        print(f"! {warning}")
    config.write(given.out)
    if config.cut is None:
        print(f"no cut holds; {given.out} says why")
        return 3
    print(f"{config.cut.name} ({config.privacy.evidence}); {given.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
