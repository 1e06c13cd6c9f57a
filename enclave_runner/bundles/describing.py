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
from ..program import optimise as opt
from ..program.parts import PROGRAM, SPEC, Part
from ..wire.areas import drop_folder, shm_folder
from ..wire.layouts import Layout
from ..wire.transport import NAMES
from .bundle import LABELS, SPLIT, TEMPLATE, Bundle, Crossing, Footprint, Optimisation, digest
from .footprint import Seen
from .halves import Halves
from .manifest import GramineWorker, render, size_enclave
from .sides import GRAMINE_SEALED, SEALED

TOLD_TO_SIGN = (
    "This bundle is not signed, so no client can check what it talks to. Where Gramine is "
    "installed, run `partopt export` again with `--sign KEY.pem`."
)


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
    """Write labels, split config, manifest, units and README; return what ``bundle.json`` says.

    Raises:
        UsageError: `labels` that do not fit.
        ExportError: A path that cannot stand in a manifest.
    """
    config, made = subject.config, subject.made
    assert config.cut is not None
    labels = labels_for(subject.labels, subject.loaded, made.answer)
    if labels is not None:
        (folder / LABELS).write_text(json.dumps(labels, ensure_ascii=False, indent=0) + "\n")
    config.write(folder / SPLIT)
    worker = _worker(subject)
    (folder / TEMPLATE).write_text(render(worker))
    choice = made.choice
    bundle = Bundle(
        partopt=metadata.version("partopt"),
        model=subject.loaded.spec,
        cut=config.cut.name,
        boundary=[_crossing(t) for t in made.boundary],
        answer=[_crossing(t) for t in made.answer],
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
        footprint=Footprint(
            parameters=sum(t.nbytes for t in made.head.tensors.values()),
            peak_activations=config.cut.head_peak_activation_bytes * made.batch,
            runtime=subject.seen.runtime,
            libraries=subject.seen.libraries,
            enclave_size=worker.enclave_size,
            max_threads=worker.max_threads,
        ),
        files={},
        warnings=_warnings(config, made),
    )
    units = folder / "systemd"
    units.mkdir()
    here = Path(__file__).parent
    fields = _fields(bundle)
    for unit in ("partopt-head@.service", "partopt-tail@.service"):
        (units / unit).write_text(string.Template((here / unit).read_text()).substitute(fields))
    text = string.Template((here / "bundle_readme.md").read_text()).substitute(fields)
    (folder / "README.md").write_text(text)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    hashes = {str(p.relative_to(folder)): digest(p) for p in files}
    return bundle.model_copy(update={"files": hashes})


def _worker(subject: Subject) -> GramineWorker:
    """The head worker as its manifest holds it."""
    enclave_size, max_threads = size_enclave(subject.seen, subject.threads)
    identity = subject.head.weights_sha256[:16]
    by_gramine = subject.head.seal == "gramine"
    return GramineWorker(
        module="enclave_runner.inside.head",
        folder="head",
        names=[SPEC, PROGRAM] if by_gramine else [SPEC, PROGRAM, SEALED],
        trusted=True,
        files=subject.seen.files,
        prefixes=subject.seen.prefixes,
        sealed=f"head/{GRAMINE_SEALED}" if by_gramine else None,
        shm=str(shm_folder(identity)),
        drop=str(drop_folder(identity)),
        enclave_size=enclave_size,
        max_threads=max_threads,
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
        "signing": TOLD_TO_SIGN if bundle.mrenclave is None else f"MRENCLAVE: {bundle.mrenclave}",
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
