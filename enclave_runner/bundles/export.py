"""From a split config to a bundle that runs: the steps, in order."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ... import config as c
from ...errors import BackendError, CutError, UsageError, WeightsError
from ...graph.build import Cut, LayerGraph
from ...identity.network import graph_hash
from ...models.load import LoadedModel
from ...models.stored import load_stored
from ..program.sealing import new_key, write_key
from . import signing
from .bundle import SPLIT, Bundle, digest
from .describing import TOLD_TO_SIGN, Subject, describe
from .footprint import rehearse
from .halves import halves
from .sides import SEALED, reseal_by_gramine, write_parts


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is exported.

    Attributes:
        split: What `find` wrote.
        weights: The model's weights, where the split config was made with a file.
        trust_model: Allow a ``.pt2`` file.
        even_if_slower: Go on where the split config recommends not to split.
        accept_screening: Go on with a cut that was only screened, or that a screening left
            undecided: nothing certifies it.
    """

    split: Path
    weights: str | None = None
    trust_model: bool = False
    even_if_slower: bool = False
    accept_screening: bool = False


@dataclass(frozen=True, kw_only=True)
class Build:
    """How it is built.

    Attributes:
        optimise: ``none`` (bit-identical), ``auto`` or switches (see `optimise`).
        batch: Largest batch that the workers take.
        threads: Compute threads that the enclave is sized for.
        labels: ``imagenet``, a text file with a label a line, or None: the model's own.
        seed: For the images that programs are compared on.
    """

    optimise: str = "none"
    batch: int = 8
    threads: int = 1
    labels: str | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Keys:
    """How the head's weights are sealed and its enclave is signed.

    Attributes:
        file: Where the new key goes; None is ``OUT.key`` beside the bundle.
        seal_with: ``aes-256-gcm``, or ``gramine`` for an encrypted mount of Gramine's.
        sign: Key for ``gramine-sgx-sign``.
    """

    file: Path | None = None
    seal_with: str = "aes-256-gcm"
    sign: Path | None = None

    def __post_init__(self) -> None:
        if self.seal_with not in ("aes-256-gcm", "gramine"):
            raise UsageError(f"`seal` got {self.seal_with!r}; use aes-256-gcm or gramine")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A finished bundle: its folder, where its key was written, and what must be known.

    ``off`` is how far answers without switches are off the loaded model's, as a share of what these
    vary by between images; 0 is bit-identical.
    """

    folder: Path
    key: Path
    bundle: Bundle
    warnings: list[str] = field(default_factory=list)
    off: float = 0.0


def export(
    source: Source,
    out: Path,
    *,
    build: Build | None = None,
    keys: Keys | None = None,
    stage: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write a bundle into the new folder `out`.

    Args:
        source: What is exported.
        out: Folder that does not exist or is empty.
        build: How it is built.
        keys: How it is sealed and signed.
        stage: Told what is going on.

    Raises:
        UsageError, ExportError, WeightsError, CutError, BackendError.
    """
    build, keys = build or Build(), keys or Keys()
    config = _splittable(source)
    key_file = _free_places(out, keys)
    stage("loading the model")
    loaded = load_stored(config, None, source.weights, source.trust_model)
    if loaded.weights_hash != config.model.weights_hash:
        raise WeightsError(
            "the model's weights are not those that the split config was made with; give the same "
            "file, or run find on these"
        )
    graph, cut = _cut(loaded, config)
    stage("writing programs")
    made = halves(loaded, graph, cut, optimise=build.optimise, batch=build.batch, seed=build.seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        secret = new_key()
        head = write_parts(temporary, made, loaded.preprocessing, secret)["head"]
        stage("measuring what the head needs")
        seen = rehearse(temporary / "head", made.batch, secret)
        if keys.seal_with == "gramine":
            head = reseal_by_gramine(temporary, head, made.head, secret)
        subject = Subject(
            config=config,
            loaded=loaded,
            made=made,
            head=head,
            seen=seen,
            threads=build.threads,
            labels=build.labels,
        )
        bundle = describe(temporary, subject)
        warnings = list(bundle.warnings)
        if keys.sign is not None:
            stage("signing")
            bundle = _sign(temporary, bundle, keys.sign.resolve(), warnings)
        bundle.write(temporary)
        write_key(key_file, secret)
        if out.exists():
            out.rmdir()
        os.chmod(temporary, 0o755)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if bundle.mrenclave is not None and config.mrenclave != bundle.mrenclave:
        config.model_copy(update={"mrenclave": bundle.mrenclave}).write(source.split)
    return Exported(folder=out, key=key_file, bundle=bundle, warnings=warnings, off=made.off)


def _splittable(source: Source) -> c.SplitConfig:
    """The split config, if it says to split and its evidence is good enough, or was accepted."""
    config = c.SplitConfig.read(source.split)
    path, cut, standing = repr(str(source.split)), config.cut, config.standing
    if cut is None:
        raise UsageError(f"`split` got {path}, which has no cut: none was safe")
    screens = config.privacy.screens
    if standing not in ("safe", "screened") and not (standing == "undecided" and screens):
        raise UsageError(
            f"`split` got {path}, whose cut {cut.name!r} is {standing}, which counts as leaking; "
            "run find again"
        )
    refused: list[tuple[str, str]] = []
    if standing != "safe" and not source.accept_screening:
        why = f"whose cut {cut.name!r} is {standing}, not certified: {config.privacy.missing}"
        refused.append((why, "--accept-screening"))
    if config.recommendation == "do not split" and not source.even_if_slower:
        why = (
            f"which recommends not to split: {config.recommended_because}; keep the whole model in "
            "the enclave"
        )
        refused.append((why, "--even-if-slower"))
    if refused:
        raise UsageError(
            f"`split` got {path}, {', and '.join(why for why, _ in refused)}, or go on with "
            f"{' '.join(option for _, option in refused)}"
        )
    return config


def _free_places(out: Path, keys: Keys) -> Path:
    """Where the key goes, once it is known that nothing would be overwritten or missing."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"`out` got {str(out)!r}, which is not empty; name a new folder")
    key_file = keys.file or out.with_name(f"{out.name}.key")
    if key_file.exists():
        raise UsageError(f"`key` got {str(key_file)!r}, which exists; move it or name another file")
    if out.resolve() in key_file.resolve().parents:
        raise UsageError(f"`key` got {str(key_file)!r}, inside the bundle; keep it elsewhere")
    if keys.seal_with == "gramine" and shutil.which("gramine-sgx-pf-crypt") is None:
        raise BackendError("`seal` got 'gramine', but gramine-sgx-pf-crypt is not on PATH")
    return key_file


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


__all__ = ["SEALED", "Build", "Exported", "Keys", "Source", "export"]
