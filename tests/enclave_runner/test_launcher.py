"""Starting a worker: whose call is taken for the worker's."""

import socket

from partopt.enclave_runner import launcher


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
