import optuna
import pytest
from optuna.artifacts import Boto3ArtifactStore, upload_artifact
from PIL import Image

from partopt.attackers import pictures
from partopt.errors import UsageError
from partopt.optimizer.artifacts import artifact_store, fetched

KEY = "a" * 64


def uploaded(store, tmp_path, content=None):
    """A trial on another machine, with its picture."""
    path = tmp_path / "made.png"
    if content is None:
        Image.new("RGB", (4, 4)).save(path)
    else:
        path.write_bytes(content)
    study = optuna.create_study()
    trial = study.ask()
    upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)
    return study._storage, study.trials[0], path.read_bytes()


def test_a_picture_of_another_machine_comes_through_the_store(tmp_path):
    where = str(tmp_path / "shared")
    storage, trial, made = uploaded(artifact_store(where), tmp_path)
    assert not fetched(storage, trial, KEY, artifact_store(str(tmp_path / "other")))
    assert fetched(storage, trial, KEY, artifact_store(where))
    assert pictures.stored(KEY) == made


def test_what_is_no_picture_is_not_taken(tmp_path):
    store = artifact_store(str(tmp_path / "shared"))
    storage, trial, _ = uploaded(store, tmp_path, b"no picture")
    assert not fetched(storage, trial, KEY, store)


def test_a_bucket_is_reached_by_its_name(monkeypatch):
    made = []
    monkeypatch.setattr(Boto3ArtifactStore, "__init__", lambda self, name: made.append(name))
    assert isinstance(artifact_store("s3://bucket/"), Boto3ArtifactStore)
    assert made == ["bucket"]


def test_a_bucket_without_its_package_is_refused(monkeypatch):
    def missing(self, name):
        raise ImportError

    monkeypatch.setattr(Boto3ArtifactStore, "__init__", missing)
    with pytest.raises(UsageError, match="needs boto3"):
        artifact_store("s3://bucket")
