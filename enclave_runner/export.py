"""From a split config to a bundle that runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import string
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import save

from .. import config as c
from ..answers import tensors
from ..errors import BackendError, CutError, ExportError, UsageError, WeightsError
from ..graph import Cut, LayerGraph
from ..identity import graph_hash
from ..models import LoadedModel
from ..reference import TOLERANCE, random_inputs, share, spread, untouched
from ..splitting import split
from ..stored import load_stored
from . import optimise as opt
from . import signing
from .areas import drop_folder, shm_folder
from .bundle import (
    LABELS,
    SPLIT,
    TEMPLATE,
    Bundle,
    Crossing,
    Footprint,
    Optimisation,
    digest,
)
from .footprint import Seen, look
from .manifest import Worker, render, run_tool, size_enclave
from .parts import PROGRAM, SPEC, WEIGHTS, Layout, Limits, Part
from .programs import DTYPES, Program, record
from .sealing import derive, new_key, seal, write_key
from .transport import NAMES

SEALED = f"{WEIGHTS}.sealed"
GRAMINE_SEALED = f"{WEIGHTS}.pf"
TOLD_TO_SIGN = (
    "This bundle is not signed, so no client can check what it talks to. Where Gramine is "
    "installed, run `partopt export` again with `--sign KEY.pem`."
)


@dataclass(frozen=True)
class Exported:
    """A finished bundle: its folder, where its key was written, and what must be known.

    ``off`` is how far answers without switches are off the loaded model's, as a share of what these
    vary by between images; 0 is bit-identical.
    """

    folder: Path
    key: Path
    bundle: Bundle
    warnings: list[str]
    off: float = 0.0


def export(
    split_config: Path,
    out: Path,
    *,
    weights: str | None = None,
    key: Path | None = None,
    seal_with: str = "aes-256-gcm",
    optimise: str = "none",
    batch: int = 8,
    threads: int = 1,
    labels: str | None = None,
    sign: Path | None = None,
    even_if_slower: bool = False,
    trust_model: bool = False,
    seed: int = 0,
    stage: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write the bundle of `split_config` into the new folder `out`.

    Args:
        split_config: What `find` wrote.
        out: Folder that does not exist or is empty.
        weights: The model's weights, where the split config was made with a file.
        key: File to write the key to; default: ``OUT.key`` beside the bundle.
        seal_with: ``aes-256-gcm``, or ``gramine`` for an encrypted mount of Gramine's.
        optimise: ``none`` (bit-identical), ``auto`` or switches (see `optimise`).
        batch: Largest batch that the workers take.
        threads: Compute threads that the enclave is sized for.
        labels: ``imagenet``, a text file with a label a line, or None: the model's own.
        sign: Key for ``gramine-sgx-sign``.
        even_if_slower: Go on where the split config recommends not to split.
        trust_model: Allow a ``.pt2`` file.
        seed: For the input that programs are compared on.
        stage: Told what is going on.

    Raises:
        UsageError, ExportError, WeightsError, CutError, BackendError.
    """
    config = c.SplitConfig.read(split_config)
    if config.cut is None:
        raise UsageError(f"`split` got {str(split_config)!r}, which has no cut: none was safe")
    if config.recommendation == "do not split" and not even_if_slower:
        raise UsageError(
            f"`split` got {str(split_config)!r}, which recommends not to split: "
            f"{config.recommended_because}; keep the whole model in the enclave, or go on with "
            "--even-if-slower"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"`out` got {str(out)!r}, which is not empty; name a new folder")
    key_file = key or out.with_name(f"{out.name}.key")
    if key_file.exists():
        raise UsageError(f"`key` got {str(key_file)!r}, which exists; move it or name another file")
    if out.resolve() in key_file.resolve().parents:
        raise UsageError(f"`key` got {str(key_file)!r}, inside the bundle; keep it elsewhere")
    if seal_with == "gramine" and shutil.which("gramine-sgx-pf-crypt") is None:
        raise BackendError("`seal` got 'gramine', but gramine-sgx-pf-crypt is not on PATH")
    stage("loading the model")
    loaded = load_stored(config, None, weights, trust_model)
    if loaded.weights_hash != config.model.weights_hash:
        raise WeightsError(
            "the model's weights are not those that the split config was made with; give the same "
            "file, or run find on these"
        )
    graph, cut = _cut(loaded, config)
    stage("writing programs")
    made = _programs(loaded, graph, cut, optimise, batch, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        secret = new_key()
        parts = _write_parts(temporary, made, loaded, secret)
        stage("measuring what the head needs")
        seen = look(temporary / "head", made.batch, secret)
        if seal_with == "gramine":
            _reseal_by_gramine(temporary, parts["head"], made.head, secret)
        bundle, warnings = _write_rest(
            temporary, out.name, config, loaded, made, parts, seen, threads, labels, seal_with
        )
        if sign is not None:
            stage("signing")
            bundle = _sign(temporary, bundle, sign.resolve(), warnings)
        bundle.write(temporary)
        write_key(key_file, secret)
        if out.exists():
            out.rmdir()
        os.chmod(temporary, 0o755)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if bundle.mrenclave is not None and config.mrenclave != bundle.mrenclave:
        config.model_copy(update={"mrenclave": bundle.mrenclave}).write(split_config)
    return Exported(out, key_file, bundle, warnings, made.off)


def _cut(loaded: LoadedModel, config: c.SplitConfig) -> tuple[LayerGraph, Cut]:
    assert config.cut is not None
    graph = loaded.trace()
    cut = graph.cut(config.cut.name)
    if graph_hash(graph) != config.model.graph_hash:
        raise CutError(
            "the model's graph is not the one that was attacked: its code, the way it is traced or "
            "the names of its nodes changed; run find again"
        )
    want = [(t.name, tuple(t.shape), t.dtype) for t in config.cut.boundary]
    if want != [(s.name, s.shape, s.dtype) for s in cut.boundary]:
        raise CutError(
            f"`cut` {cut.name!r} has another boundary than when it was attacked; run find again"
        )
    return graph, cut


@dataclass(frozen=True)
class _Made:
    cut: Cut
    head: Program
    tail: Program
    inputs: tuple[Layout, ...]
    boundary: tuple[Layout, ...]
    answer: tuple[Layout, ...]
    batch: int
    choice: opt.Choice
    off: float


def _programs(
    loaded: LoadedModel, graph: LayerGraph, cut: Cut, optimise: str, batch: int, seed: int
) -> _Made:
    """Head and tail as programs, compared with the loaded model itself."""
    wanted = opt.parse(optimise)
    odd = next((s for s in cut.boundary if s.dtype not in DTYPES), None)
    if odd is not None:
        raise ExportError(
            f"the boundary tensor {odd.name!r} is {odd.dtype}, which cannot cross; cut elsewhere"
        )
    head, tail = split(graph, cut, flat=True)
    sample = torch.zeros((1, *graph.inputs[0].shape[1:]))
    # One image each of another range of values.
    singles = [random_inputs((sample,), 1, seed + i)[0] for i in range(3)]
    truths = [_truth(loaded, image) for image in singles]
    example = singles[0]
    error: ExportError | None = None
    for dynamic in [False] if graph.fixed_batch is not None else [True, False]:
        try:
            first = record(head, [example], dynamic)
            between = first(example)
            second = record(tail, [t.clone() for t in between], dynamic)
            pairs = [(t, second(*first(x))) for t, x in zip(truths, singles, strict=True)]
            answer = pairs[0][1]
            off = _off(pairs)
            if dynamic:
                _grows(between, answer, first, second, example)
                several = torch.cat(singles)
                off = max(off, _off([(_truth(loaded, several), second(*first(several)))]))
            break
        except ExportError as caught:
            error = caught
    else:
        assert error is not None
        raise error
    choice = opt.choose(head, first, second, example, wanted, dynamic)
    return _Made(
        cut,
        choice.program,
        second,
        (Layout.of(first.inputs[0], example),),
        tuple(Layout.of(s.name, t) for s, t in zip(cut.boundary, between, strict=True)),
        tuple(Layout.of(f"answer_{i}", t) for i, t in enumerate(answer)),
        batch if dynamic else 1,
        choice,
        off,
    )


def _truth(loaded: LoadedModel, images: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of the loaded model's own answer; a single number has one dimension."""
    try:
        with torch.no_grad(), untouched(loaded.module):
            answer = loaded.module(images.clone(), **loaded.arguments)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"the model fails on a batch of {len(images)}: {lines[0]}") from error
    return [t.reshape(1) if t.ndim == 0 else t.clone() for t in tensors(answer)]


def _off(pairs: Sequence[tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]]) -> float:
    """How far programs are off the model: a share of what its answers vary by; 0 is no bit.

    Raises:
        ExportError: More than rounding explains.
    """
    worst = 0.0
    if any(len(t) != len(a) for t, a in pairs):
        raise ExportError("head and tail answer with other tensors than the model")
    for i in range(len(pairs[0][0])):
        width = spread([truth[i] for truth, _ in pairs])
        worst = max([worst, *(share(truth[i], answer[i], width) for truth, answer in pairs)])
    if worst > TOLERANCE:
        raise ExportError(
            f"head and tail answer otherwise than the model, by {worst:.1e} of what its answers "
            "vary by between images; cut elsewhere"
        )
    return worst


def _grows(
    between: Sequence[torch.Tensor],
    answer: Sequence[torch.Tensor],
    head: Program,
    tail: Program,
    example: torch.Tensor,
) -> None:
    """Check that every tensor that crosses grows with the batch in its first dimension."""
    two = head(torch.cat([example, example]))
    for one, both in zip([*between, *answer], [*two, *tail(*two)], strict=True):
        if one.ndim == 0 or tuple(both.shape) != (2 * one.shape[0], *one.shape[1:]):
            raise ExportError("a tensor that crosses does not grow with the batch")


def _write_parts(folder: Path, made: _Made, loaded: LoadedModel, key: bytes) -> dict[str, Part]:
    parts = {}
    for role, program in (("head", made.head), ("tail", made.tail)):
        place = folder / role
        place.mkdir()
        text = program.to_json().encode()
        (place / PROGRAM).write_bytes(text)
        weights = _weights(program)
        part = Part(
            role=role,
            inputs=made.inputs if role == "head" else made.boundary,
            outputs=made.boundary if role == "head" else made.answer,
            answers=made.answer,
            seal="aes-256-gcm" if role == "head" else "none",
            program_sha256=hashlib.sha256(text).hexdigest(),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            limits=Limits(batch=made.batch),
            preprocessing=loaded.preprocessing if role == "head" else None,
        )
        (place / SPEC).write_text(part.to_json())
        if role == "tail":
            (place / WEIGHTS).write_bytes(weights)
        else:
            (place / SEALED).write_bytes(seal(weights, key, f"head/{WEIGHTS}"))
        parts[role] = part
    return parts


def _weights(program: Program) -> bytes:
    return save({n: t.clone().contiguous() for n, t in program.tensors.items()})


def _reseal_by_gramine(folder: Path, part: Part, program: Program, key: bytes) -> None:
    """Let Gramine's tool encrypt; the plain copy lives in memory, readable by us alone."""
    weights = _weights(program)
    (folder / "head" / SEALED).unlink()
    (folder / "head" / SPEC).write_text(replace(part, seal="gramine").to_json())
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="partopt-seal-", dir=memory) as hidden:
        wrap, plain = Path(hidden) / "key", Path(hidden) / "plain"
        wrap.write_bytes(derive(key, "gramine encrypted mount", 16))
        plain.write_bytes(weights)
        # The tool writes the output path into the file, and Gramine compares it.
        run_tool(
            [
                "gramine-sgx-pf-crypt",
                "encrypt",
                "-w",
                str(wrap),
                "-i",
                str(plain),
                "-o",
                f"head/{GRAMINE_SEALED}",
            ],
            folder,
        )


def _write_rest(
    folder: Path,
    name: str,
    config: c.SplitConfig,
    loaded: LoadedModel,
    made: _Made,
    parts: dict[str, Part],
    seen: Seen,
    threads: int,
    labels: str | None,
    seal_with: str,
) -> tuple[Bundle, list[str]]:
    """Labels, split config, manifest, units, README; return what goes into ``bundle.json``."""
    assert config.cut is not None
    known = _labels(labels, loaded, made.answer)
    if known is not None:
        (folder / LABELS).write_text(json.dumps(known, ensure_ascii=False, indent=0) + "\n")
    config.write(folder / SPLIT)
    enclave_size, max_threads = size_enclave(seen, threads)
    identity = parts["head"].weights_sha256[:16]
    own = [SPEC, PROGRAM]
    sealed = f"head/{GRAMINE_SEALED}" if seal_with == "gramine" else None
    if sealed is None:
        own.append(SEALED)
    worker = Worker(
        "enclave_runner.head",
        "head",
        own,
        True,
        seen.files,
        seen.prefixes,
        sealed,
        str(shm_folder(identity)),
        str(drop_folder(identity)),
        enclave_size,
        max_threads,
    )
    (folder / TEMPLATE).write_text(render(worker))
    choice = made.choice
    bundle = Bundle(
        partopt=metadata.version("partopt"),
        model=loaded.spec,
        cut=config.cut.name,
        boundary=[Crossing(name=t.name, shape=list(t.shape), dtype=t.dtype) for t in made.boundary],
        answer=[Crossing(name=t.name, shape=list(t.shape), dtype=t.dtype) for t in made.answer],
        payload_bytes=sum(t.nbytes(1) for t in made.boundary),
        seal="gramine" if seal_with == "gramine" else "aes-256-gcm",
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
            runtime=seen.runtime,
            libraries=seen.libraries,
            enclave_size=enclave_size,
            max_threads=max_threads,
        ),
        files={},
        warnings=_warnings(config, made),
    )
    units = folder / "systemd"
    units.mkdir()
    here = Path(__file__).parent
    fields = _fields(bundle, seal_with)
    for unit in ("partopt-head@.service", "partopt-tail@.service"):
        (units / unit).write_text(string.Template((here / unit).read_text()).substitute(fields))
    text = string.Template((here / "bundle_readme.md").read_text()).substitute(fields)
    (folder / "README.md").write_text(text)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    hashes = {str(p.relative_to(folder)): digest(p) for p in files}
    return bundle.model_copy(update={"files": hashes}), list(bundle.warnings)


def _fields(bundle: Bundle, seal_with: str) -> dict[str, str]:
    def tensors(entries: list[Crossing]) -> str:
        return "; ".join(f"`{t.name}`, {t.dtype}, {'x'.join(map(str, t.shape))}" for t in entries)

    return {
        "model": bundle.model,
        "cut": bundle.cut,
        "boundary": f"    {tensors(bundle.boundary)}  ({bundle.payload_bytes} bytes an image)",
        "answer": tensors(bundle.answer),
        "signing": TOLD_TO_SIGN if bundle.mrenclave is None else f"MRENCLAVE: {bundle.mrenclave}",
        "seal": "AES-128-GCM by Gramine's encrypted mount"
        if seal_with == "gramine"
        else "AES-256-GCM",
        "size": f"{bundle.footprint.enclave_size >> 20} MiB",
        "threads": str(bundle.footprint.max_threads),
        "warnings": "\n".join(f"- {w}" for w in bundle.warnings),
        "python": sys.executable,
    }


def _warnings(config: c.SplitConfig, made: _Made) -> list[str]:
    found = []
    if config.privacy.evidence == "screening":
        found.append(
            "the cut was only screened (quick budget): run find with --budget standard or full "
            "before anything private goes through it"
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


def _labels(wanted: str | None, loaded: LoadedModel, answer: Sequence[Layout]) -> list[str] | None:
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
        from .._torchvision import models

        found = list(models.get_weight("ResNet18_Weights.IMAGENET1K_V1").meta["categories"])
    else:
        path = Path(wanted)
        if not path.is_file():
            raise UsageError(f"`labels` got {wanted!r}; use imagenet or a text file")
        found = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if len(found) != classes:
        raise UsageError(f"`labels` got {len(found)} labels for {classes} classes")
    return found


def _sign(folder: Path, bundle: Bundle, key: Path, warnings: list[str]) -> Bundle:
    """Run Gramine's tools where they exist; otherwise say what to run later."""
    if not key.is_file():
        raise UsageError(f"`sign` got {str(key)!r}, which does not exist")
    if signing.missing():
        warnings.append(f"not signed: {', '.join(signing.missing())} not on PATH")
        return bundle
    mrenclave = signing.sign(folder, key)
    signed = bundle.model_copy(update={"mrenclave": mrenclave})
    config = c.SplitConfig.read(folder / SPLIT).model_copy(update={"mrenclave": mrenclave})
    config.write(folder / SPLIT)
    text = (folder / "README.md").read_text().replace(TOLD_TO_SIGN, f"MRENCLAVE: `{mrenclave}`")
    (folder / "README.md").write_text(text)
    new = [SPLIT, "README.md", *signing.SIGNED]
    files = {**signed.files, **{n: digest(folder / n) for n in new}}
    return signed.model_copy(update={"files": dict(sorted(files.items()))})


__all__ = ["Exported", "export"]
