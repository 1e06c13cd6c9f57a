"""What a worker prints: findable, and bounded wherever it goes."""

import os

import pytest

from partopt.enclave_runner import output
from partopt.enclave_runner.output import KEPT, Output
from partopt.errors import UsageError


def printed(pieces, log=None) -> Output:
    reading, writing = os.pipe()
    found = Output(os.fdopen(reading, "rb", buffering=0), log)
    with os.fdopen(writing, "wb", buffering=0) as stream:
        for piece in pieces:
            stream.write(piece)
    found.close()
    return found


def test_the_end_is_kept_here_and_all_of_it_in_the_log(tmp_path):
    log = tmp_path / "logs" / "tail.log"
    found = printed([b"one\n", b"two\n"], log)
    assert found.said() == "one\ntwo\n"
    assert found.last_line() == "two"
    printed([b"three\n"], log)
    assert log.read_text() == "one\ntwo\nthree\n"
    assert log.stat().st_mode & 0o777 == 0o600
    assert printed([]).last_line() == "it said nothing"


def test_a_worker_that_prints_without_end_fills_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "MOST", 100_000)
    log = tmp_path / "tail.log"
    found = printed([b"x" * 10_000 + b"\n"] * 100, log)
    assert KEPT // 2 < len(found.said()) <= KEPT
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 2 * (100_000 + 16_384)
    assert {p.name for p in tmp_path.iterdir()} == {"tail.log", "tail.log.1"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"`logs` got '.*/file', which cannot be written"):
        printed([], tmp_path / "file" / "head.log")
