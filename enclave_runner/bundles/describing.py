"""What a bundle holds beside its sides: labels, manifest, units, README, ``bundle.json``."""

from __future__ import annotations

import json
import string
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ...config import SplitConfig
from ...errors import UsageError
from ...models.load import LoadedModel
from ..lowering.choosing import Chosen
from ..program import optimise as opt
from ..program.parts import Part
from ..wire.layouts import Layout
from ..wire.transport import NAMES
from .bundle import (
    FILES,
    LABELS,
    README,
    SPLIT,
    UNITS,
    Bundle,
    Crossing,
    EngineUse,
    Footprint,
    Optimisation,
    digest,
)
from .footprint import Seen
from .halves import Halves
from .needs import Needs


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a bundle is made of.

    Attributes:
        config: The split config; it has a cut.
        loaded: The model.
        made: Both halves as programs.
        head: The head's spec as it was written.
        seen: What a rehearsal of the head needed.
        threads: Compute threads that the enclave is sized for.
        labels: ``imagenet``, a text file with a label a line, or None: the model's own.
    """

    config: SplitConfig
    loaded: LoadedModel
    made: Halves
    head: Part
    seen: Seen
    threads: int
    labels: str | None


def describe(folder: Path, subject: Subject) -> Bundle:
    """Write labels, split config, the enclave's needs, units and README.

    Return what ``bundle.json`` says, but for the hashes of files and the identity.

    Raises:
        UsageError: `labels` that do not fit.
    """
    config, made = subject.config, subject.made
    assert config.cut is not None
    labels = labels_for(subject.labels, subject.loaded, made.answer)
    if labels is not None:
        (folder / LABELS).write_text(json.dumps(labels, ensure_ascii=False, indent=0) + "\n")
    config.write(folder / SPLIT)
    needs = Needs.of(subject.seen, subject.threads)
    needs.write(folder)
    choice = made.choice
    bundle = Bundle(
        partopt=metadata.version("partopt"),
        model=subject.loaded.spec,
        cut=config.cut.name,
        boundary=[_crossing(t) for t in subject.head.outputs],
        answer=[_crossing(t) for t in subject.head.answers],
        payload_bytes=sum(t.nbytes(1) for t in made.boundary),
        seal="gramine" if subject.head.seal == "gramine" else "aes-256-gcm",
        batch=made.batch,
        transports=list(NAMES),
        optimisation=Optimisation(
            switches=list(choice.switches),
            tolerance=opt.TOLERANCE if choice.switches else 0.0,
            difference=choice.difference,
            speedup=choice.speedup,
            tried=choice.tried,
        ),
        head_engine=_use(made.engines["head"], [t.name for t in made.boundary]),
        tail_engine=_use(made.engines["tail"], [t.name for t in made.answer]),
        footprint=Footprint(
            parameters=sum(t.nbytes for t in made.head.tensors.values()),
            peak_activations=config.cut.head_peak_activation_bytes * made.batch,
            runtime=subject.seen.runtime,
            libraries=subject.seen.libraries,
            enclave_size=needs.enclave_size,
            max_threads=needs.max_threads,
        ),
        files={},
        warnings=_warnings(config, made),
    )
    units = folder / "systemd"
    units.mkdir()
    here = Path(__file__).parent
    fields = _fields(bundle)
    for unit in UNITS:
        (units / unit).write_text(string.Template((here / unit).read_text()).substitute(fields))
    text = string.Template((here / "bundle_readme.md").read_text()).substitute(fields)
    (folder / README).write_text(text)
    return bundle


def hashed(folder: Path, bundle: Bundle) -> Bundle:
    """`bundle` with the hash of every file in `folder`."""
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    kept = {n: digest(folder / n) for n in files if n in FILES}
    return bundle.model_copy(update={"files": kept})


def _use(chosen: Chosen, names: Sequence[str]) -> EngineUse:
    return EngineUse.model_validate(
        {
            "name": chosen.engine,
            "level": chosen.level,
            "speedup": chosen.speedup,
            "images": chosen.images,
            "differences": dict(zip(names, chosen.differences, strict=False)),
            "tried": chosen.tried,
        }
    )


def _crossing(layout: Layout) -> Crossing:
    return Crossing(name=layout.name, shape=list(layout.shape), dtype=layout.dtype)


def _fields(bundle: Bundle) -> dict[str, str]:
    def tensors(entries: list[Crossing]) -> str:
        return "; ".join(f"`{t.name}`, {t.dtype}, {'x'.join(map(str, t.shape))}" for t in entries)

    return {
        "model": bundle.model,
        "cut": bundle.cut,
        "boundary": f"    {tensors(bundle.boundary)}  ({bundle.payload_bytes} bytes an image)",
        "answer": tensors(bundle.answer),
        "seal": "AES-128-GCM by Gramine's encrypted mount"
        if bundle.seal == "gramine"
        else "AES-256-GCM",
        "size": f"{bundle.footprint.enclave_size >> 20} MiB",
        "threads": str(bundle.footprint.max_threads),
        "warnings": "\n".join(f"- {w}" for w in bundle.warnings),
        "python": sys.executable,
    }


def _warnings(config: SplitConfig, made: Halves) -> list[str]:
    found = []
    if config.standing != "safe":
        found.append(
            f"the cut is {config.standing}, not certified: {config.privacy.missing}; until then "
            "let nothing private through it"
        )
    if config.model.random_weights:
        found.append("the weights are random: this bundle is good for trying things out alone")
    if made.batch == 1:
        found.append("this model runs at batch 1 only")
    if made.off:
        found.append(
            f"answers differ from the model's by rounding: {made.off:.1e} of what they vary by "
            "between images"
        )
    found.extend(f"cut after {made.cut.name}: {r}" for r in made.cut.remarks)
    return found


def labels_for(
    wanted: str | None, loaded: LoadedModel, answer: Sequence[Layout]
) -> list[str] | None:
    """Labels of the answer's classes.

    Default weights of torchvision with 1000 classes are ImageNet's; nothing else is guessed.
    """
    classes = answer[0].shape[-1]
    known = wanted is None and loaded.weights.startswith("default") and classes == 1000
    if known and not loaded.spec.startswith("timm:"):
        wanted = "imagenet"
    if wanted is None:
        return None
    if wanted == "imagenet":
        from ...graph.torchvision_cpu import models

        found = list(models.get_weight("ResNet18_Weights.IMAGENET1K_V1").meta["categories"])
    else:
        path = Path(wanted)
        if not path.is_file():
            raise UsageError(f"`labels` got {wanted!r}; use imagenet or a text file")
        found = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if len(found) != classes:
        raise UsageError(f"`labels` got {len(found)} labels for {classes} classes")
    return found
