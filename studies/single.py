"""The panel on one cut, with every measure and the pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from ..attackers.base import Fitted, Key, as_images
from ..attackers.metrics import lpips_measure, multi_scale_ssim, psnr
from ..attackers.pictures import sheet
from ..attackers.scoring import Score
from ..graph.build import Cut
from ..images.load import at_resolution, pictures_in
from ..models.load import LoadedModel
from ..optimizer.attempt import Failed, Reached, Wish, attempt_twice
from ..optimizer.budgets import Budget
from ..optimizer.prepare import Prepared, prepare
from ..optimizer.requests import AttackOptions, FindRequest
from ..optimizer.watcher import Silent, Watcher

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
    ground = prepare(request, watcher)
    images, lpips = ground.images, lpips_measure()
    shown = pictures_in(show, ground.model.preprocessing, SHOWN) if show is not None else None
    originals = ground.pictures[slice(*images.bounds("test"))][:SHOWN]
    if shown is not None:
        originals = at_resolution(shown, ground.side)
    bench = ground.bench
    for i, target in enumerate(ground.cuts):
        fitted: dict[Key, Fitted] = {}
        results = []
        for name, attacker in ground.panel.items():
            watcher.stage(f"attacking {target.name} with {name}", 1)
            wish = Wish(
                also=tuple(ground.cuts[i + 1 :]),
                fitted=fitted,
                pictures=True,
                progress=partial(watcher.progress, f"{name} on {target.name}"),
            )
            reached, notes = attempt_twice(bench, target, attacker, wish)
            results.append(_result(name, reached, notes, lpips))
            if isinstance(reached, Reached):
                pictures = _pictures(ground, target, reached, shown)
                results[-1] = replace(results[-1], rebuilt=pictures)
            found = results[-1].score
            watcher.attacked(target.name, name, found.value if found else None, False)
        yield CutAttack(
            model=ground.model.spec,
            weights=ground.model.weights,
            cut=target.name,
            data=images.source,
            resolution=ground.side,
            images={p: len(images.part(p)) for p in ("train", "validation", "test")},
            floor=float(ground.floor.mean()),
            results=results,
            originals=originals,
            warnings=[*ground.warnings, *_budget_warnings(ground.budget)],
        )


def _budget_warnings(budget: Budget) -> list[str]:
    if budget.evidence == "screening":
        return ["budget quick screens: attackers train briefly on few images"]
    return []


def _result(
    name: str,
    reached: Reached | Failed,
    notes: list[str],
    lpips: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None,
) -> Result:
    """Every measure of an attack, or why it has none."""
    if isinstance(reached, Failed):
        return Result(
            attacker=name,
            settings=reached.settings,
            score=None,
            ms_ssim=None,
            psnr=None,
            lpips=None,
            image_steps=reached.image_steps,
            seconds=reached.seconds,
            note="; ".join(notes),
        )
    rebuilt, truth = reached.rebuilt, as_images(reached.unseen.images)
    multi = multi_scale_ssim(rebuilt, truth)
    return Result(
        attacker=name,
        settings=reached.settings,
        score=reached.score,
        ms_ssim=None if multi is None else float(multi.mean()),
        psnr=float(psnr(rebuilt, truth).mean()),
        lpips=None if lpips is None else float(lpips(rebuilt, truth).mean()),
        image_steps=reached.image_steps,
        seconds=reached.seconds,
        note="; ".join(filter(None, [*notes, reached.note])),
    )


def _pictures(
    ground: Prepared, cut: Cut, reached: Reached, shown: np.ndarray | None
) -> torch.Tensor:
    """What is to be seen: the first test images, or the pictures asked for, as rebuilt."""
    if shown is None:
        return reached.rebuilt[:SHOWN]
    with torch.no_grad():
        return reached.attacker.reconstruct(ground.store.maps_of(cut, shown)).cpu()
