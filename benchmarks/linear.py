"""Strength and time of the linear attacker, cut by cut, at the model's resolution.

    python benchmarks/linear.py --weights mobilenet_v2.pth --data photos --mean 0.5 --std 0.5

Prints raw SSIM on unseen photos and the seconds that fitting took, features not included.
"""

from __future__ import annotations

import sys
import time

from _shared import parser_of

from partopt.attackers.base import Context
from partopt.attackers.features import FeatureStore
from partopt.attackers.pairs import Pairs
from partopt.attackers.panel import make
from partopt.attackers.scoring import ssim_of
from partopt.cache import cache_dir
from partopt.images.load import Split, load_images
from partopt.models.load import load_model


def main() -> int:
    parser = parser_of(__doc__, "mobilenet_v2")
    parser.add_argument("--photos", type=int, default=500)
    parser.add_argument(
        "--cuts", nargs="*", default=["features.0", "features.3", "features.6", "features.10"]
    )
    args = parser.parse_args()
    model = load_model(args.model, weights=args.weights, mean=args.mean, std=args.std)
    images = load_images(args.data, model.preprocessing, Split(args.photos, 48, 64))
    graph = model.trace()
    store = FeatureStore(
        cache_dir("features"), graph, model.preprocessing, images, model.weights_hash
    )
    cuts = graph.cuts(args.cuts)
    print(f"{args.model}, weights {model.weights}, {images.source}")
    print("| cut | raw SSIM | seconds |\n|---|---|---|")
    for cut in cuts:
        train, held_out, test = (store.rows(cut, p, cuts) for p in ("train", "validation", "test"))
        attacker = make("linear")
        start = time.monotonic()
        parts = (train, images.part("train")), (held_out, images.part("validation"))
        attacker.fit(Pairs.of(*parts), Context())
        seconds = time.monotonic() - start
        raw = ssim_of(attacker.reconstruct, test, images.part("test")).mean()
        print(f"| `{cut.name}` | {raw:.3f} | {seconds:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
