import sqlite3

import optuna
import pytest

from partopt.errors import StorageError, UsageError
from partopt.optimizer.storage import CLAIM, claimed, open_storage, owner, spoken, whereabouts


def test_a_damaged_database_is_one_sentence(tmp_path):
    (tmp_path / "x.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(UsageError, match=r"`storage` got 'sqlite:.*not a database") as caught:
        open_storage(f"sqlite:///{tmp_path}/x.db")
    assert "\n" not in str(caught.value)


def test_a_database_of_another_schema_is_one_sentence(tmp_path):
    url = f"sqlite:///{tmp_path}/x.db"
    optuna.storages.RDBStorage(url)
    with sqlite3.connect(tmp_path / "x.db") as database:
        database.execute("update alembic_version set version_num = 'v0.9.0.a'")
    database.close()
    with pytest.raises(UsageError, match="`storage` got") as caught:
        open_storage(url)
    assert "\n" not in str(caught.value)


def test_a_locked_database_is_one_sentence(tmp_path):
    url = f"sqlite:///{tmp_path}/x.db"
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 0.1}})
    optuna.create_study(storage=storage, study_name="s")
    database = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    database.execute("begin exclusive")
    with pytest.raises(StorageError, match=r"locked.*run the same command again") as caught:
        with spoken(storage):
            optuna.load_study(study_name="s", storage=storage).ask()
    assert "\n" not in str(caught.value)
    database.close()


def test_who_is_at_work_and_who_is_gone():
    me = owner()
    assert whereabouts(me) == "here"
    assert whereabouts({**me, "start": "1"}) == "gone", "the number went to another process"
    assert whereabouts({**me, "pid": 2**22 - 1}) == "gone"
    assert whereabouts({}) == "gone"
    assert whereabouts({**me, "host": "another", "pid": 2**22 - 1}) == "elsewhere"
    assert whereabouts({**me, "space": "another container", "pid": 1}) == "elsewhere"


def test_claims_of_all_studies_but_not_of_the_dead(tmp_path):
    storage, _ = open_storage(str(tmp_path / "s.journal"))
    for name, who in (("a", owner()), ("b", {**owner(), "start": "1"}), ("c", owner())):
        trial = optuna.create_study(storage=storage, study_name=name).ask()
        trial.set_user_attr("owner", who)
        trial.set_user_attr(CLAIM, name)
    assert set(claimed(storage, ["a", "b"])) == {"a"}
