"""From a split config to a bundle that runs: the steps, in order."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ... import config as c
from ...errors import BackendError, CutError, UsageError, WeightsError
from ...graph.build import Cut, LayerGraph
from ...identity.network import graph_hash
from ...models.load import LoadedModel
from ...models.stored import load_stored
from ..program.sealing import new_key, write_key
from .bundle import SEALED as ALL_SEALED
from .bundle import Bundle
from .describing import Subject, describe, hashed
from .footprint import rehearse
from .halves import halves
from .resigning import enclave_key, with_enclave
from .sides import seal_head, weights_of, write_parts
from .trust import sign_bundle, signing_key


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is exported.

    Attributes:
        split: What `find` wrote.
        weights: The model's weights, where the split config was made with a file.
        trust_model: Load a model that runs code of its own: a ``.pt2`` file, or a factory.
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
        engine, tail_engine: What runs head and tail: ``torch``, ``ort`` or ``auto``.
        batch: Largest batch that the workers take.
        threads: Compute threads that the enclave is sized for.
        labels: ``imagenet``, a text file with a label a line, or None: the model's own.
        seed: For the images that programs are compared on.
    """

    optimise: str = "none"
    engine: str = "torch"
    tail_engine: str = "torch"
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
        sign_bundle: Ed25519 key that signs the whole bundle.
    """

    file: Path | None = None
    seal_with: str = "aes-256-gcm"
    sign: Path | None = None
    sign_bundle: Path | None = None

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
    signer = signing_key(keys.sign_bundle) if keys.sign_bundle is not None else None
    stage("loading the model")
    loaded = load_stored(config, None, source.weights, source.trust_model)
    if loaded.weights_hash != config.model.weights_hash:
        raise WeightsError(
            "the model's weights are not those that the split config was made with; give the same "
            "file, or run find on these"
        )
    graph, cut = _cut(loaded, config)
    stage("writing programs")
    made = halves(
        loaded,
        graph,
        cut,
        optimise=build.optimise,
        engines=(build.engine, build.tail_engine),
        batch=build.batch,
        seed=build.seed,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        secret = new_key()
        head = write_parts(temporary, made, loaded.preprocessing, secret)["head"]
        stage("measuring what the head needs")
        seen = rehearse(temporary / "head", made.batch, secret)
        head = replace(head, seal=keys.seal_with)
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
        bundle = _identified(temporary, bundle, subject, secret)
        if keys.sign is not None:
            stage("signing")
            bundle = with_enclave(temporary, bundle, keys.sign)
        bundle.write(temporary)
        if signer is not None:
            sign_bundle(temporary, signer)
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
    if keys.sign is not None:
        enclave_key("sign", keys.sign)
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


def _identified(folder: Path, bundle: Bundle, subject: Subject, key: bytes) -> Bundle:
    """`bundle` with all hashes and its identity, to which the head's weights are sealed anew."""
    identity = hashed(folder, bundle).identified()
    seal_head(folder, replace(subject.head, bundle=identity), weights_of(subject.made, "head"), key)
    return hashed(folder, bundle.model_copy(update={"identity": identity}))


SEALED = ALL_SEALED["aes-256-gcm"]
__all__ = ["SEALED", "Build", "Exported", "Keys", "Source", "export"]
