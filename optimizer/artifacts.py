"""Pictures of attacks as artifacts of their trials: in a folder, or in S3 for several machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from optuna.storages import BaseStorage

from ..attackers import pictures
from ..cache import cache_dir, written_to, written_whole
from ..errors import UsageError
from .attempt import Reached

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

S3 = "s3://"
_MOST = 16 << 20  # bytes of a picture that is fetched


def artifact_store(where: str | None) -> ArtifactStore:
    """The store that `where` names: a folder, or ``s3://BUCKET``; None is the cache folder.

    Raises:
        UsageError: A bucket without a name, or without the package that reaches it.
    """
    if where is None:
        return FileSystemArtifactStore(str(cache_dir("artifacts")))
    if not where.startswith(S3):
        path = Path(where)
        if "://" in where or (path.exists() and not path.is_dir()):
            raise UsageError(f"`artifacts` got {where!r}; give a folder or s3://BUCKET")
        with written_to(path):
            path.mkdir(parents=True, exist_ok=True)
        return FileSystemArtifactStore(str(path))
    bucket = where.removeprefix(S3).rstrip("/")
    if not bucket or "/" in bucket:
        raise UsageError(f"`artifacts` got {where!r}; give a folder or s3://BUCKET, without a path")
    from optuna.artifacts import Boto3ArtifactStore

    try:
        return Boto3ArtifactStore(bucket)
    except ImportError:
        raise UsageError(
            f"`artifacts` got {where!r}, which needs boto3; pip install boto3, or give a folder"
        ) from None


def keep_pictures(
    storage: BaseStorage,
    trial_id: int,
    reached: Reached,
    key: str,
    artifacts: ArtifactStore | None = None,
) -> None:
    """Reconstructions beside originals: for reports of this machine, and as an artifact."""
    few = range(min(pictures.SHOWN, len(reached.unseen.images)))
    with torch.no_grad():
        rebuilt = reached.attacker.reconstruct(reached.unseen.features.take(few))
    path = pictures.save(key, reached.unseen.images[: len(few)], rebuilt)
    with written_to(cache_dir("artifacts")):
        _uploaded(storage, trial_id, path, artifacts or artifact_store(None))


def _uploaded(storage: BaseStorage, trial_id: int, path: Path, artifacts: ArtifactStore) -> None:
    from optuna.artifacts import upload_artifact

    upload_artifact(
        artifact_store=artifacts,
        file_path=str(path),
        study_or_trial=storage.get_trial(trial_id),
        storage=storage,
    )


def fetched(storage: BaseStorage, trial: Any, key: str, artifacts: ArtifactStore) -> bool:
    """Take the picture of an attack that was made elsewhere; False where it cannot be had."""
    path = pictures.path_of(key)
    if path.is_file():
        return True
    for meta in get_all_artifact_meta(trial, storage=storage):
        try:
            with artifacts.open_reader(meta.artifact_id) as reader:
                data = reader.read(_MOST + 1)
        except Exception:  # each store has errors of its own
            continue
        if len(data) <= _MOST:
            with written_whole(path) as temporary:
                temporary.write_bytes(data)
            return pictures.stored(key) is not None
    return False
