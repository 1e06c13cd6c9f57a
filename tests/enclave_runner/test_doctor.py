import stat

from partopt.enclave_runner.doctor import examine
from partopt.enclave_runner.presence import detect


def test_a_machine_without_gramine(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    finding = next(f for f in examine() if f.name == "Gramine")
    assert finding.state == "missing"
    assert "https://gramine.readthedocs.io" in finding.detail


def test_gramine_on_the_path(tmp_path, monkeypatch):
    program = tmp_path / "gramine-direct"
    program.write_text("#!/bin/sh\necho Gramine 1.9\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert detect().version == "Gramine 1.9"
    assert next(f for f in examine() if f.name == "Gramine").state == "ok"
