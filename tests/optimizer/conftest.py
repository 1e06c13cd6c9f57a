"""A PostgreSQL of one's own while tests run, and a small search for tests of fleets."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .fleet_of import Small

SECRET = "not-to-be-seen"  # the server takes any password; nothing may show it


def program(name: str) -> str | None:
    """Where a program of PostgreSQL is: on PATH, or where Debian puts it."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


def as_other(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return command
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Gives the URL of a new, empty database, as often as it is called."""
    server, init = program("postgres"), program("initdb")
    if server is None or init is None:
        pytest.skip("no PostgreSQL on this machine")
    pytest.importorskip("psycopg", reason="extra [fleet] is not installed")
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL refuses to run as root, and there is no setpriv")
    folder = Path(tempfile.mkdtemp(prefix="partopt-pg-", dir="/tmp"))
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody", "nogroup")
    made = [init, "-D", str(folder / "data"), "-A", "trust", "-U", "partopt", "--no-sync"]
    subprocess.run(as_other(made), check=True, capture_output=True, cwd=folder)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = int(s.getsockname()[1])
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "fsync": "off",
        "shared_buffers": "16MB",
        "max_connections": "200",
    }
    options = [part for n, v in settings.items() for part in ("-c", f"{n}={v}")]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            as_other([server, "-D", str(folder / "data"), *options]),
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    try:
        _reached(process, port, folder)
        numbers = iter(range(1000))

        def database() -> str:
            import psycopg

            name = f"db{next(numbers)}"
            with psycopg.connect(
                host="127.0.0.1", port=port, user="partopt", dbname="postgres", autocommit=True
            ) as connection:
                connection.execute(f"create database {name}")
            return f"postgresql://partopt:{SECRET}@127.0.0.1:{port}/{name}"

        yield database
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _reached(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    import psycopg

    for _ in range(300):
        assert process.poll() is None, (folder / "log").read_text()
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="partopt", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise AssertionError((folder / "log").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("small"))


@pytest.fixture
def one_cache(own_cache, folder, monkeypatch):
    """One for a whole file: features are made once."""
    monkeypatch.setenv("PARTOPT_CACHE", folder)


@pytest.fixture(scope="module")
def small(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARTOPT_CACHE", folder)
        yield Small()
