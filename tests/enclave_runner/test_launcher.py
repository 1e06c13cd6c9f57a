"""Starting a worker: whose call is taken for the worker's."""

import socket

import pytest

from partopt.enclave_runner import launcher
from partopt.errors import BackendError, BundleError


def test_only_the_worker_that_was_started_is_taken_for_it(monkeypatch):
    """Somebody else on the host calls first, without the token."""
    strangers = []
    listen = launcher.listen

    def overheard():
        door = listen()
        strangers.append(socket.create_connection(door.getsockname(), 10))
        strangers[0].sendall(bytes(launcher.TOKEN_BYTES))
        return door

    monkeypatch.setattr(launcher, "listen", overheard)
    worker = launcher.launch_python("profilers._echo")
    try:
        (stranger,) = strangers
        with stranger:
            assert stranger.recv(1) == b"", "hung up on"
        assert worker.process.poll() is None
    finally:
        worker.stop(1.0)


def test_a_bundle_of_an_older_version_is_refused_in_one_sentence(tmp_path):
    """It has a template of a manifest, and nothing that a manifest could be made of."""
    (tmp_path / "head.manifest.template").write_text("loader.argv = []")
    for backend in ("gramine-direct", "gramine-sgx"):
        with pytest.raises(BundleError, match=r"of an older partopt.*export again"):
            launcher.rendered(backend, tmp_path, tmp_path)


def test_sgx_wants_a_signed_bundle(made, tmp_path):
    with pytest.raises(BackendError, match="not signed; run partopt sign"):
        launcher.rendered("gramine-sgx", made.folder, tmp_path)
