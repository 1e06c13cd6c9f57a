"""The panel on one cut, with every measure and the pictures."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from ..attackers.base import Attacker, Context, Fitted, as_images, remark
from ..attackers.metrics import lpips_measure, multi_scale_ssim, psnr
from ..attackers.pictures import sheet
from ..attackers.scoring import Score, score, ssim
from ..datasets import at_resolution, pictures_in
from ..errors import PartoptError, StorageError
from ..graph import Cut
from ..hashing import derive_seed
from ..models import LoadedModel
from .budgets import Budget
from .pairs import arm, pairs_of
from .prepare import Prepared, prepare
from .requests import AttackOptions, FindRequest
from .watcher import Silent, Watcher

SHOWN = 8


@dataclass(frozen=True)
class Result:
    """One attacker on the cut. Measures are means over the test images, None if not to be had."""

    attacker: str
    settings: str
    score: Score | None
    ms_ssim: float | None
    psnr: float | None
    lpips: float | None
    image_steps: int
    seconds: float
    note: str = ""
    rebuilt: torch.Tensor | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class CutAttack:
    """The panel on one cut."""

    model: str
    weights: str
    cut: str
    data: str
    resolution: int
    images: dict[str, int]
    floor: float
    results: list[Result]
    originals: np.ndarray = field(repr=False, compare=False)
    warnings: list[str] = field(default_factory=list)

    @property
    def strongest(self) -> Result | None:
        """The attacker with the highest score."""
        scored = [r for r in self.results if r.score is not None]
        return max(scored, key=lambda r: r.score.value if r.score else 0.0, default=None)

    def save(self, path: Path) -> None:
        """Originals over each attacker's reconstructions, as a PNG."""
        rows = [("original", self.originals)]
        for result in self.results:
            if result.rebuilt is not None and result.score is not None:
                pixels = (result.rebuilt.clamp(0, 1) * 255).round().byte().numpy()
                rows.append((f"{result.attacker} {result.score.raw:.2f}", pixels))
        sheet(rows).save(path, format="PNG")


def attack_cut(
    model: str | LoadedModel,
    cut: str,
    *,
    show: str | Path | None = None,
    watcher: Watcher | None = None,
    **options: Unpack[AttackOptions],
) -> CutAttack:
    """Run attackers on one cut; arguments as in `attack_cuts`."""
    return next(attack_cuts(model, [cut], show=show, watcher=watcher, **options))


def attack_cuts(
    model: str | LoadedModel,
    cuts: str | Sequence[str],
    *,
    show: str | Path | None = None,
    watcher: Watcher | None = None,
    **options: Unpack[AttackOptions],
) -> Iterator[CutAttack]:
    """Run attackers on cuts, one after the other; options as in `find`, see `AttackOptions`.

    Pictures are of the first test images, or of those in the folder `show`, which are rebuilt like
    them and count for no figure.

    Nothing is stored but feature maps. An attacker that is built on another one of the panel takes
    it as fitted; its seconds and image-steps count all the same. A failed attacker is tried once
    more with safer settings; if that fails too its result has no score, and says why.
    """
    watcher = watcher or Silent()
    request = FindRequest.of(model, options, "attack_cuts", AttackOptions)
    request = replace(request, which_cuts=replace(request.which_cuts, cuts=cuts))
    ground, seed = prepare(request, watcher), request.seed
    scale = request.scale or "corrected"
    images, lpips = ground.images, lpips_measure()
    shown = pictures_in(show, ground.model.preprocessing, SHOWN) if show is not None else None
    originals = ground.pictures[slice(*images.bounds("test"))][:SHOWN]
    if shown is not None:
        originals = at_resolution(shown, ground.side)
    for i, target in enumerate(ground.cuts):
        bench = _Bench(ground, target, tuple(ground.cuts[i + 1 :]), scale, lpips, shown)
        fitted: dict[str, Fitted] = {}
        results = []
        for name, attacker in ground.panel.items():
            watcher.stage(f"attacking {target.name} with {name}", 1)
            context = Context(
                derive_seed(seed, target.name), ground.device, fitted=fitted,
                progress=partial(watcher.progress, f"{name} on {target.name}"),
            )  # fmt: skip
            results.append(_one(bench, copy.deepcopy(attacker), context))
            found = results[-1].score
            watcher.attacked(target.name, name, found.value if found else None, False)
        yield CutAttack(
            ground.model.spec, ground.model.weights, target.name, images.source, ground.side,
            {p: len(images.part(p)) for p in ("train", "validation", "test")},
            float(ground.floor.mean()), results, originals,
            [*ground.warnings, *_budget_warnings(ground.budget)],
        )  # fmt: skip


def _budget_warnings(budget: Budget) -> list[str]:
    if budget.evidence == "screening":
        return ["budget quick screens: attackers train briefly on few images"]
    return []


@dataclass(frozen=True)
class _Bench:
    """What every attacker is measured with."""

    ground: Prepared
    cut: Cut
    later: tuple[Cut, ...]
    scale: str
    lpips: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
    shown: np.ndarray | None


def _one(bench: _Bench, attacker: Attacker, context: Context) -> Result:
    """Fit and measure; once more with safer settings after a failure."""
    tried: Attacker | None = attacker
    notes: list[str] = []
    start = time.monotonic()
    while tried is not None:
        try:
            rebuilt, originals, pictures = _fitted(bench, tried, context)
        except StorageError:
            raise
        except (PartoptError, RuntimeError, MemoryError, ValueError) as error:
            first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            notes.append(f"failed: {first}")
            tried = tried.safer() if len(notes) == 1 else None
            continue
        measured = _measured(bench, tried, rebuilt, originals, context, notes, start)
        return replace(measured, rebuilt=pictures)
    return Result(
        attacker.name, repr(attacker), None, None, None, None, context.image_steps,
        time.monotonic() - start, "; ".join(notes),
    )  # fmt: skip


def _fitted(
    bench: _Bench, attacker: Attacker, context: Context
) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    """Reconstructions of the test images, those images, and reconstructions to be shown."""
    ground = bench.ground
    pairs = pairs_of(ground.store, bench.cut, attacker, ground.pictures, bench.later)
    arm(context, ground.store, bench.cut, attacker)
    key, start = repr(attacker), time.monotonic()
    attacker.fit(
        pairs.train, pairs.targets, validation=(pairs.held_out, pairs.held_out_pictures),
        context=context,
    )  # fmt: skip
    context.keep(key, attacker, time.monotonic() - start)
    parts = []
    with torch.no_grad():
        for i in range(0, len(pairs.originals), 16):
            index = range(i, min(i + 16, len(pairs.originals)))
            parts.append(attacker.reconstruct(pairs.test.take(index)).cpu())
        if bench.shown is None:
            pictures = torch.cat(parts)[:SHOWN]
        else:
            pictures = attacker.reconstruct(ground.store.maps_of(bench.cut, bench.shown)).cpu()
    return torch.cat(parts), pairs.originals, pictures


def _measured(
    bench: _Bench,
    attacker: Attacker,
    rebuilt: torch.Tensor,
    originals: np.ndarray,
    context: Context,
    notes: list[str],
    start: float,
) -> Result:
    truth = as_images(originals)
    per_image = ssim(rebuilt, truth).double().numpy()
    multi = multi_scale_ssim(rebuilt, truth)
    note = "; ".join(filter(None, [*notes, remark(attacker)]))
    steps, seconds = context.cost(time.monotonic() - start)
    return Result(
        attacker.name, repr(attacker),
        score(per_image, bench.ground.floor, scale=bench.scale, seed=derive_seed(0, "bootstrap")),
        None if multi is None else float(multi.mean()),
        float(psnr(rebuilt, truth).mean()),
        None if bench.lpips is None else float(bench.lpips(rebuilt, truth).mean()),
        steps, seconds, note,
    )  # fmt: skip
