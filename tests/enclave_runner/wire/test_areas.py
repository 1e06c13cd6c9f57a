"""What services of one bundle share on a host, and what becomes of it when one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from partopt.enclave_runner.wire import areas
from partopt.enclave_runner.wire.areas import Place
from partopt.errors import ServiceError

A, B = "a" * 16, "b" * 16


def test_a_place_is_ours_alone(tmp_path):
    home = tmp_path / "partopt-x"
    place = Place(home, A)
    assert home.stat().st_mode & 0o777 == 0o700
    path, descriptor = place.file("area", 100)
    os.close(descriptor)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == 100
    assert place.folder("frames").stat().st_mode & 0o777 == 0o700
    place.leave()
    assert not home.exists()
    place.leave()
    (tmp_path / "file").touch()
    with pytest.raises(ServiceError, match="somebody else"):
        Place(tmp_path / "file", A)


def test_who_leaves_takes_nothing_of_anothers_however_old_it_is(tmp_path):
    home = tmp_path / "home"
    one, other = Place(home, A), Place(home, B)
    path, descriptor = one.file("area", 10)
    os.close(descriptor)
    os.utime(path, (0, 0))
    other.leave()
    assert path.exists()
    Place(home, B).leave()
    assert path.exists()
    one.leave()
    assert not home.exists()


def test_what_a_killed_service_left_is_swept_by_the_next(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from partopt.enclave_runner.wire import areas\n"
        "place = areas.Place(Path(sys.argv[1]), 'a' * 16)\n"
        "place.file('area', 10); place.frames('frames', {'answer-0': 10})\n"
        "print('there', flush=True); time.sleep(60)"
    )
    home = tmp_path / "home"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(home)], stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        assert areas.alive(home, A)
        process.send_signal(signal.SIGKILL)
    assert (home / f"{A}.frames" / "answer-0").exists()
    assert not areas.alive(home, A)
    place = Place(home, B)
    assert [p.name for p in home.iterdir()] == [f"{B}.lock"]
    place.leave()
    assert not home.exists()


def test_too_little_shared_memory_is_one_sentence_that_names_it():
    """It is asked for at once: memory that is only promised ends whoever writes to it."""
    there = os.statvfs("/dev/shm")
    home = areas.shm_folder(f"test-{os.getpid()}")
    place = Place(home, A)
    try:
        with pytest.raises(ServiceError, match=r"^/dev/shm has \d+ KiB free and .*--shm-size"):
            place.file("area", there.f_blocks * there.f_frsize + 4096)
        assert [p.name for p in home.iterdir()] == [f"{A}.lock"]
        _, descriptor = place.file("area", 1 << 20)
        assert os.fstat(descriptor).st_blocks * 512 == 1 << 20, "there before anybody writes"
        os.close(descriptor)
    finally:
        place.leave()
    assert not home.exists()
