"""Trace models, compare graph and model, and split every cut and compare with the whole model.

    python benchmarks/zoo.py [--from torchvision|timm|huggingface] [--kind all] [--only NAME ...]

torchvision: every classification model. timm: a small member of each of its families. Hugging Face
(where transformers is installed): small configurations of its bare vision models. All weights are
random. Prints one line per model: how it was traced, how many cuts, how many are bit-identical.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn

from partopt.errors import PartoptError
from partopt.graph.answers import tensors
from partopt.graph.build import trace
from partopt.graph.splitting import split
from partopt.graph.torchvision_cpu import models as tv

SIZES = {"inception_v3": 96, "alexnet": 64, "googlenet": 64}
# What the smallest member of a timm family is likely to be called, the likeliest first.
SMALL = (
    "test_",
    "atto",
    "femto",
    "pico",
    "nano",
    "xxs",
    "xx_small",
    "x_small",
    "xs",
    "xtiny",
    "tiny",
    "micro",
    "mini",
    "_t0",
    "_t_",
    "_t1",
    "_s0",
    "_b0",
    "_a0",
    "_m0",
    "_m1",
    "small",
    "_t",
    "_s",
    "18",
    "050",
    "26",
    "_0",
)
MOST_PARAMETERS = 40_000_000
Made = tuple[nn.Module, int]


def torchvision_model(name: str) -> Made:
    size = SIZES.get(name, 64)
    if name.startswith("vit"):
        size = 518 if "h_14" in name else 224
    if name.startswith("maxvit"):
        size = 224
    return tv.get_model(name, weights=None), size


def timm_families() -> dict[str, str]:
    """A small model of each family (a module of timm's), by name alone."""
    import timm

    found = {}
    for family in timm.list_modules():
        names = timm.list_models(module=family, exclude_filters=["*in21k*", "*_clip_*", "*_384*"])

        def rank(name: str) -> tuple[int, int, str]:
            return next((i for i, w in enumerate(SMALL) if w in name), 99), len(name), name

        if names:
            found[family] = min(names, key=rank)
    return found


def timm_model(name: str) -> Made:
    import timm

    model = timm.create_model(name, pretrained=False)
    return model, int(timm.data.resolve_model_data_config(model)["input_size"][-1])


def huggingface() -> dict[str, Callable[[], Made]]:
    try:
        import transformers as t
    except ImportError:
        return {}
    square = {"image_size": 32, "patch_size": 8}
    plain = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, **square}
    wide = {**plain, "intermediate_size": 64}
    stages = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
    swin = {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
    }
    return {
        "ViTModel": lambda: (t.ViTModel(t.ViTConfig(**wide)), 32),
        "DeiTModel": lambda: (t.DeiTModel(t.DeiTConfig(**wide)), 32),
        "BeitModel": lambda: (t.BeitModel(t.BeitConfig(**wide)), 32),
        "SwinModel": lambda: (t.SwinModel(t.SwinConfig(**swin)), 32),
        "Swinv2Model": lambda: (t.Swinv2Model(t.Swinv2Config(**swin)), 32),
        "ConvNextModel": lambda: (t.ConvNextModel(t.ConvNextConfig(**stages, image_size=32)), 32),
        "Dinov2Model": lambda: (t.Dinov2Model(t.Dinov2Config(**plain)), 32),
        "Dinov2WithRegistersModel": lambda: (
            t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**plain)),
            32,
        ),
        "CLIPVisionModel": lambda: (t.CLIPVisionModel(t.CLIPVisionConfig(**wide)), 32),
        "ResNetModel": lambda: (
            t.ResNetModel(t.ResNetConfig(embedding_size=16, **stages)),
            32,
        ),
        "MobileViTModel": lambda: (t.MobileViTModel(t.MobileViTConfig(image_size=64)), 64),
        "SegformerModel": lambda: (
            t.SegformerModel(t.SegformerConfig(hidden_sizes=[16, 32, 40, 64])),
            32,
        ),
        "ViTMAEModel": lambda: (t.ViTMAEModel(t.ViTMAEConfig(**wide)), 32),
        "ViTForImageClassification": lambda: (
            t.ViTForImageClassification(t.ViTConfig(**wide)),
            32,
        ),
    }


def check(name: str, make: Callable[[], Made], kind: str, most: float) -> str:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, size = make()
    model.eval()
    count = sum(p.numel() for p in model.parameters())
    if count > most:
        return f"| {name} | - | - | not run: {count / 1e6:.0f} million parameters |"
    x = torch.randn(1, 3, size, size)
    try:
        graph = trace(model, x)
    except PartoptError as error:
        return f"| {name} | - | - | {str(error)[:400]} |"
    with torch.no_grad():
        cuts = graph.cuts(kind)
        pair = torch.randn(2, *x.shape[1:])
        want = tensors(model(x))
        want2 = tensors(model(pair)) if graph.fixed_batch is None else want
        keep = x.clone()
        bad = [] if _same(tensors(graph.module(x)), want) else ["the graph"]
        for i, cut in enumerate(cuts):
            head, tail = split(graph, cut, flat=True)
            same = _same(tail(*head(x)), want)
            if i % 8 == 0 and graph.fixed_batch is None:
                same = same and _same(tail(*head(pair)), want2)
            if not same:
                bad.append(cut.name)
        if not torch.equal(x, keep):
            bad.append("input overwritten")
    clean = sum(len(c.boundary) == 1 for c in cuts)
    verdict = "all bit-identical" if not bad else f"NOT EQUAL at {', '.join(bad[:5])}"
    if graph.fixed_batch is not None:
        verdict += f", batch {graph.fixed_batch} only"
    return f"| {name} | {graph.source} | {len(cuts)} ({clean} clean) | {verdict} |"


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.reshape(y.shape), y) for x, y in zip(a, b, strict=True)
    )


def _apart(queue: multiprocessing.Queue, source: str, name: str, kind: str, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        most = MOST_PARAMETERS if source == "timm" else math.inf
        queue.put(check(name, maker(source, name), kind, most))
    except Exception as error:
        queue.put(f"| {name} | - | - | {type(error).__name__}: {str(error)[:300]} |")


def maker(source: str, name: str) -> Callable[[], Made]:
    if source == "huggingface":
        return huggingface()[name]
    return lambda: (torchvision_model if source == "torchvision" else timm_model)(name)


def limited(source: str, name: str, kind: str, threads: int, limit: float) -> str:
    """One model in a process of its own, for at most `limit` seconds."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_apart, args=(queue, source, name, kind, threads))
    process.start()
    try:
        return queue.get(timeout=limit)
    except Exception:
        return f"| {name} | - | - | not finished within {limit:.0f} s |"
    finally:
        process.kill()
        process.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--from",
        dest="source",
        default="torchvision",
        choices=["torchvision", "timm", "huggingface"],
    )
    parser.add_argument("--kind", default="clean", choices=["clean", "all", "stage"])
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--skip", nargs="*", default=["vit_h_14", "regnet_y_128gf"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds a model")
    args = parser.parse_args()
    known = {
        "torchvision": lambda: tv.list_models(module=tv),
        "timm": lambda: list(timm_families().values()),
        "huggingface": lambda: list(huggingface()),
    }[args.source]()
    names = args.only or [n for n in known if n not in args.skip]
    print("| model | traced by | cuts | head and tail against the whole model |\n|---|---|---|---|")
    failed = 0
    for name in names:
        start = time.monotonic()
        line = limited(args.source, name, args.kind, args.threads, args.limit)
        failed += "NOT EQUAL" in line
        print(line, flush=True)
        print(f"  {time.monotonic() - start:.0f} s", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
