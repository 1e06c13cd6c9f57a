import errno
import fcntl
import json
import os
import threading
import time

import optuna
import pytest

from partopt.cache import cache_dir
from partopt.errors import StorageError, UsageError
from partopt.optimizer import journal as module
from partopt.optimizer.storage import open_storage, spoken

HALF = '{"op_code":8,"worker_id":"abc","tri'


@pytest.fixture
def path(tmp_path):
    """A journal of three finished trials."""
    path = tmp_path / "s.journal"
    study = optuna.create_study(storage=open_storage(str(path))[0], study_name="s")
    for i in range(3):
        study.tell(study.ask(), float(i))
    return path


def values(path):
    study = optuna.load_study(study_name="s", storage=open_storage(str(path))[0])
    return [t.value for t in study.trials]


def goes_on(path):
    """What comes after is stored and read again, by Optuna too."""
    before = values(path)
    study = optuna.load_study(study_name="s", storage=open_storage(str(path))[0])
    study.tell(study.ask(), 9.0)
    theirs = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    found = [t.value for t in optuna.load_study(study_name="s", storage=theirs).trials]
    assert found == values(path) == [*before, 9.0]


@pytest.mark.parametrize(
    "tail", [HALF, "\0" * 512, HALF + "\0" * 40, HALF + "\n", "\0" * 64 + "\n", "{"]
)
def test_a_torn_end_is_cut_and_kept(path, tail, caplog):
    whole = path.read_bytes()
    path.write_bytes(whole + tail.encode())
    assert values(path) == [0.0, 1.0, 2.0]
    assert path.read_bytes() == whole
    assert path.with_name("s.journal.torn-1").read_bytes() == tail.encode()
    assert caplog.text.count("s.journal") == 2
    assert "torn" in caplog.text
    goes_on(path)
    assert caplog.text.count("torn in") == 1, "said once, then mended"


def test_the_last_bytes_are_missing(path):
    os.truncate(path, path.stat().st_size - 20)
    assert values(path) == [0.0, 1.0, None]
    goes_on(path)


@pytest.mark.parametrize("blank", ["\n", "  \n", "\n\n\r\n"])
def test_blank_lines_lose_nothing(path, blank, caplog):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(blank + "".join([*lines[:3], blank, *lines[3:], blank]))
    assert values(path) == [0.0, 1.0, 2.0]
    study = optuna.load_study(study_name="s", storage=open_storage(str(path))[0])
    study.tell(study.ask(), 9.0)
    assert values(path) == [0.0, 1.0, 2.0, 9.0]
    assert not caplog.text


@pytest.mark.parametrize("bad", [HALF, "\0" * 100, "[]", '{"op_code":4,{"op_code":4,"x":1}'])
def test_a_damaged_line_inside_leaves_what_was_before_it(path, bad, caplog):
    """Later records count on earlier ones: a trial's number is how many were made before."""
    lines = path.read_text().splitlines(keepends=True)
    first = next(i for i, t in enumerate(lines) if '"state":1' in t and '"op_code":6' in t)
    path.write_text("".join([*lines[: first + 1], bad + "\n", *lines[first + 2 :]]))
    damaged = path.read_bytes()
    assert values(path) == [0.0]
    assert path.with_name("s.journal.damaged-1").read_bytes() == damaged
    assert f"line {first + 2}" in caplog.text
    goes_on(path)


def test_who_reads_a_journal_that_is_replaced_stops(path):
    storage, _ = open_storage(str(path))
    study = optuna.load_study(study_name="s", storage=storage)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:-2], HALF + "\n", *lines[-1:]]))
    assert values(path) == [0.0, 1.0]
    with pytest.raises(StorageError, match="run the same command again"):
        study.ask()


def test_damage_while_in_use_is_one_sentence(path):
    storage, _ = open_storage(str(path))
    study = optuna.load_study(study_name="s", storage=storage)
    with open(path, "a") as file:
        file.write(HALF + "\n" + '{"op_code":4}\n')
    with pytest.raises(StorageError, match="damaged in line"), spoken(storage):
        study.ask()


def test_somebody_elses_file_is_left_alone(tmp_path):
    for text in ("2026-01-01 service started\nand stopped", "notes", '{"a": 1}\n{"b": 2}\n'):
        path = tmp_path / "server.log"
        path.write_text(text)
        with pytest.raises(UsageError, match=r"`storage` got .*server\.log"):
            open_storage(str(path))
        assert path.read_text() == text
        assert os.listdir(tmp_path) == ["server.log"]


def test_records_of_another_version_are_left_alone(path):
    with open(path, "a") as file:
        file.write('{"op_code":99,"worker_id":"x"}\n')
    before = path.read_bytes()
    count = before.count(b"\n")
    with pytest.raises(UsageError, match=rf"line {count} .*; move the file away"):
        open_storage(str(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "\0" * 4096, HALF, "{", "nonsense\n" + HALF])
def test_the_journal_of_the_cache_always_opens(text):
    path = cache_dir("studies") / "partopt.journal"
    path.write_text(text)
    storage, name = open_storage(None)
    assert name == "partopt.journal"
    optuna.create_study(storage=storage, study_name="s").ask()
    assert len(values(path)) == 1


def test_a_folder_is_no_journal(tmp_path):
    (tmp_path / "s.journal").mkdir()
    with pytest.raises(UsageError, match="no file"):
        open_storage(str(tmp_path / "s.journal"))


def test_a_full_disk_tears_nothing(path, monkeypatch):
    study = optuna.load_study(study_name="s", storage=open_storage(str(path))[0])
    before, write = path.read_bytes(), os.write

    def full(handle, data):
        if len(data) > 30:
            return write(handle, data[:30])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=r"s\.journal' cannot be written .*make room"):
        study.ask()
    assert path.read_bytes() == before
    monkeypatch.undo()
    study.tell(study.ask(), 9.0)
    assert values(path) == [0.0, 1.0, 2.0, 9.0]


def test_another_writers_half_line_is_not_cut(path):
    """Whoever writes holds the lock; whoever mends waits for it."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    found = []
    with open(path, "ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(lines[-1][:20])
        thread = threading.Thread(target=lambda: found.append(values(path)))
        thread.start()
        time.sleep(0.3)
        assert not found
        file.write(lines[-1][20:])
    thread.join(20)
    assert found == [[0.0, 1.0, 2.0]]
    assert not path.with_name("s.journal.torn-1").exists()


def test_a_lock_that_a_dead_process_left(path, monkeypatch, caplog):
    monkeypatch.setattr(module, "_STALE_S", 0.3)
    os.symlink(path, f"{path}.lock")
    began = time.monotonic()
    assert values(path) == [0.0, 1.0, 2.0]
    goes_on(path)
    assert time.monotonic() - began < 10
    assert caplog.text.count("s.journal.lock") == 1
    assert not os.path.lexists(f"{path}.lock")


def test_a_lock_that_is_never_given_back_is_one_sentence(path, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE_S", 0.2)
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="locked by another process"):
            open_storage(str(path))


def test_two_writers_lose_nothing(path):
    def write():
        study = optuna.load_study(study_name="s", storage=open_storage(str(path))[0])
        for _ in range(5):
            study.tell(study.ask(), 1.0)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(values(path)) == 13
    for text in path.read_text().splitlines():
        json.loads(text)
